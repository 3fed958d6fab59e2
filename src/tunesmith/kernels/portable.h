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

/* As many numbers at once as a register of the processor holds, widened to fp32 and rounded back; the addresses need no
   alignment. A wider vector would be cut into pieces that pass through memory. The processor's own rounding to bf16 makes
   0 of numbers below 1.2e-38, the others do not. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
/* Rows of a tile of sums, each of two registers: the sums, what they meet and a factor fit into 32 registers, or 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE_ROWS 8
#else
#define TILE_ROWS 4
#endif
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t wide_bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t narrow_bits __attribute__((vector_size(2 * LANES), aligned(2)));

static inline vec load_vec_f32(const float *x) { return *(const vec *)x; }
static inline void store_vec_f32(float *to, vec x) { *(vec *)to = x; }

static inline vec load_vec_b16(const bf16 *x) {
#ifdef __AVX512F__
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return (vec)_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
#else
    wide_bits bits = __builtin_convertvector(*(const narrow_bits *)x, wide_bits) << 16;
    return (vec)bits;
#endif
}

static inline void store_vec_b16(bf16 *to, vec x) {
#ifdef __AVX512BF16__
    __m256bh out = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &out, sizeof(out));
#else
    wide_bits bits = (wide_bits)x;
    wide_bits nan = (wide_bits)((bits & 0x7fffffffu) > 0x7f800000u);
    wide_bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (nan & ((bits >> 16) | 0x40u)) | (~nan & rounded);
    *(narrow_bits *)to = __builtin_convertvector(rounded, narrow_bits);
#endif
}

#define LOAD_f32(x) (x)
#define STORE_f32(x) (x)
#define LOAD_b16(x) from_bf16(x)
#define STORE_b16(x) to_bf16(x)

#endif
