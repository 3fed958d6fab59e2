/* What the kernels share: bf16 as uint16_t, a vectorisable exp, and the two element types of every function. */
#ifndef TUNESMITH_PORTABLE_H
#define TUNESMITH_PORTABLE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef uint16_t bf16;

static inline float from_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

static inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t nan = (bits & 0x7fffffffu) > 0x7f800000u;
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bf16)(nan ? ((bits >> 16) | 0x40u) : rounded);
}

/* exp with a relative error near 2e-7: 2^n * p(f), |f| <= ln2/2. */
static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = nearbyintf(x * 1.44269504088896341f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* Sixteen numbers at once, widened to fp32 and rounded back; the addresses need no alignment. The processor's own
   rounding to bf16 makes 0 of numbers below 1.2e-38, the others do not. */
typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2)));

static inline v16 load16_f32(const float *x) { return *(const v16 *)x; }
static inline void store16_f32(float *to, v16 x) { *(v16 *)to = x; }

#ifdef __AVX512F__
static inline v16 load16_b16(const bf16 *x) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return (v16)_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
#else
static inline v16 load16_b16(const bf16 *x) {
    u32x16 bits = __builtin_convertvector(*(const u16x16 *)x, u32x16) << 16;
    v16 out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}
#endif

#ifdef __AVX512BF16__
static inline void store16_b16(bf16 *to, v16 x) {
    __m256bh out = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &out, sizeof(out));
}
#else
static inline void store16_b16(bf16 *to, v16 x) {
    u32x16 bits;
    memcpy(&bits, &x, sizeof(bits));
    u32x16 nan = (u32x16)((bits & 0x7fffffffu) > 0x7f800000u);
    u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (nan & ((bits >> 16) | 0x40u)) | (~nan & rounded);
    *(u16x16 *)to = __builtin_convertvector(rounded, u16x16);
}
#endif

#define LOAD_f32(x) (x)
#define STORE_f32(x) (x)
#define LOAD_b16(x) from_bf16(x)
#define STORE_b16(x) to_bf16(x)

#endif
