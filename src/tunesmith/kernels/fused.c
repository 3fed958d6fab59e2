/* Elementwise work of a transformer block, and of what stands beside it, in one pass each, for fp32 and bf16 on a CPU.
 *
 * Plain C with OpenMP: the compiler makes vector code for whatever processor it runs on. Each function works row by
 * row, in fp32 inside; the Python side (fused.py) holds the plain reference of each. bf16 is stored as uint16_t.
 */
#include "portable.h"

/* y = x * rstd * (w + offset), rstd = 1 / sqrt(mean(x^2) + eps) */
#define RMS_NORM(NAME, T)                                                                                       \
    void rms_norm_##NAME(const T *x, const T *w, T *y, float *rstd, int64_t rows, int64_t dim, float eps,       \
                         float offset) {                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows > 16)") for (int64_t r = 0; r < rows; r++) {        \
            const T *xr = x + r * dim;                                                                          \
            T *yr = y + r * dim;                                                                                \
            float sum = 0.0f;                                                                                   \
            _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < dim; i++) {                          \
                float v = LOAD_##NAME(xr[i]);                                                                   \
                sum += v * v;                                                                                   \
            }                                                                                                   \
            float s = 1.0f / sqrtf(sum / (float)dim + eps);                                                     \
            rstd[r] = s;                                                                                        \
            _Pragma("omp simd") for (int64_t i = 0; i < dim; i++) {                                             \
                yr[i] = STORE_##NAME(LOAD_##NAME(xr[i]) * s * (LOAD_##NAME(w[i]) + offset));                    \
            }                                                                                                   \
        }                                                                                                       \
    }                                                                                                           \
    /* dx = rstd * (g - x * rstd^2 * mean(g x)),  g = dy * (w + offset) */                                      \
    void rms_norm_back_##NAME(const T *dy, const T *x, const T *w, const float *rstd, T *dx, int64_t rows,      \
                              int64_t dim, float offset) {                                                      \
        _Pragma("omp parallel for schedule(static) if (rows > 16)") for (int64_t r = 0; r < rows; r++) {        \
            const T *xr = x + r * dim, *gr = dy + r * dim;                                                      \
            T *dr = dx + r * dim;                                                                               \
            float dot = 0.0f, s = rstd[r];                                                                      \
            _Pragma("omp simd reduction(+ : dot)") for (int64_t i = 0; i < dim; i++) {                          \
                dot += LOAD_##NAME(gr[i]) * (LOAD_##NAME(w[i]) + offset) * LOAD_##NAME(xr[i]);                  \
            }                                                                                                   \
            float c = dot * s * s / (float)dim;                                                                 \
            _Pragma("omp simd") for (int64_t i = 0; i < dim; i++) {                                             \
                float g = LOAD_##NAME(gr[i]) * (LOAD_##NAME(w[i]) + offset);                                    \
                dr[i] = STORE_##NAME(s * (g - LOAD_##NAME(xr[i]) * c));                                         \
            }                                                                                                   \
        }                                                                                                       \
    }

/* y = gate * sigmoid(gate) * up */
#define SWIGLU(NAME, T)                                                                                         \
    void swiglu_##NAME(const T *gate, const T *up, T *y, int64_t n) {                                           \
        _Pragma("omp parallel for simd schedule(static) if (n > 16384)") for (int64_t i = 0; i < n; i++) {      \
            float g = LOAD_##NAME(gate[i]);                                                                     \
            y[i] = STORE_##NAME(g / (1.0f + fast_exp(-g)) * LOAD_##NAME(up[i]));                                \
        }                                                                                                       \
    }                                                                                                           \
    void swiglu_back_##NAME(const T *dy, const T *gate, const T *up, T *dgate, T *dup, int64_t n) {             \
        _Pragma("omp parallel for simd schedule(static) if (n > 16384)") for (int64_t i = 0; i < n; i++) {      \
            float g = LOAD_##NAME(gate[i]), d = LOAD_##NAME(dy[i]);                                             \
            float sigma = 1.0f / (1.0f + fast_exp(-g));                                                         \
            float silu = g * sigma;                                                                             \
            dup[i] = STORE_##NAME(d * silu);                                                                    \
            dgate[i] = STORE_##NAME(d * LOAD_##NAME(up[i]) * (sigma + silu * (1.0f - sigma)));                  \
        }                                                                                                       \
    }

/* Rotate pairs (i, i + dim/2) of each head by the angle of the token: x [tokens, heads, dim], cos and sin [tokens,
 * dim]. `sign` -1 turns back, which is the gradient. y may be x. */
#define ROTARY(NAME, T)                                                                                         \
    void rotary_##NAME(const T *x, const T *cosine, const T *sine, T *y, int64_t tokens, int64_t heads,         \
                       int64_t dim, float sign) {                                                               \
        int64_t half = dim / 2;                                                                                 \
        _Pragma("omp parallel for schedule(static) if (tokens > 16)") for (int64_t t = 0; t < tokens; t++) {    \
            const T *c = cosine + t * dim, *s = sine + t * dim;                                                 \
            for (int64_t h = 0; h < heads; h++) {                                                               \
                const T *a = x + (t * heads + h) * dim, *b = a + half;                                          \
                T *ya = y + (t * heads + h) * dim, *yb = ya + half;                                             \
                _Pragma("omp simd") for (int64_t i = 0; i < half; i++) {                                        \
                    float p = LOAD_##NAME(a[i]), q = LOAD_##NAME(b[i]);                                         \
                    float ca = LOAD_##NAME(c[i]), sa = sign * LOAD_##NAME(s[i]);                                \
                    float cb = LOAD_##NAME(c[i + half]), sb = sign * LOAD_##NAME(s[i + half]);                  \
                    ya[i] = STORE_##NAME(p * ca - q * sa);                                                      \
                    yb[i] = STORE_##NAME(q * cb + p * sb);                                                      \
                }                                                                                               \
            }                                                                                                   \
        }                                                                                                       \
    }

/* Loss of each row of logits and, in their place (or as bf16 in `narrow`), weight * (softmax - one at the target). */
#define CROSS_ENTROPY(NAME, T)                                                                                  \
    void cross_entropy_##NAME(T *logits, const int64_t *targets, const float *weights, float *losses,           \
                              int64_t rows, int64_t vocabulary) {                                               \
        _Pragma("omp parallel for schedule(dynamic, 1)") for (int64_t r = 0; r < rows; r++) {                   \
            T *z = logits + r * vocabulary;                                                                     \
            float highest = -INFINITY;                                                                          \
            _Pragma("omp simd reduction(max : highest)") for (int64_t i = 0; i < vocabulary; i++) {             \
                float v = LOAD_##NAME(z[i]);                                                                    \
                highest = v > highest ? v : highest;                                                            \
            }                                                                                                   \
            double total = 0.0;                                                                                 \
            for (int64_t start = 0; start < vocabulary; start += 4096) {                                        \
                int64_t end = start + 4096 < vocabulary ? start + 4096 : vocabulary;                            \
                float part = 0.0f;                                                                              \
                _Pragma("omp simd reduction(+ : part)") for (int64_t i = start; i < end; i++) {                 \
                    part += fast_exp(LOAD_##NAME(z[i]) - highest);                                              \
                }                                                                                               \
                total += part;                                                                                  \
            }                                                                                                   \
            float log_sum = highest + (float)log(total), picked = LOAD_##NAME(z[targets[r]]);                   \
            losses[r] = weights[r] * (log_sum - picked);                                                        \
            float w = weights[r];                                                                               \
            _Pragma("omp simd") for (int64_t i = 0; i < vocabulary; i++) {                                      \
                z[i] = STORE_##NAME(w * fast_exp(LOAD_##NAME(z[i]) - log_sum));                                 \
            }                                                                                                   \
            z[targets[r]] = STORE_##NAME(w * (fast_exp(picked - log_sum) - 1.0f));                              \
        }                                                                                                       \
    }

/* y = gain * z + shift, row by row: z, y [rows, dim], gain and shift [dim]; no shift where `shifted` is 0. */
#define GAIN(NAME, T)                                                                                           \
    void gain_##NAME(const T *z, const float *gain, const float *shift, T *y, int64_t rows, int64_t dim,        \
                     int64_t shifted) {                                                                         \
        _Pragma("omp parallel for schedule(static) if (rows > 16)") for (int64_t r = 0; r < rows; r++) {        \
            const T *zr = z + r * dim;                                                                          \
            T *yr = y + r * dim;                                                                                \
            if (shifted) {                                                                                      \
                _Pragma("omp simd") for (int64_t i = 0; i < dim; i++)                                           \
                    yr[i] = STORE_##NAME(LOAD_##NAME(zr[i]) * gain[i] + shift[i]);                              \
            } else {                                                                                            \
                _Pragma("omp simd") for (int64_t i = 0; i < dim; i++)                                           \
                    yr[i] = STORE_##NAME(LOAD_##NAME(zr[i]) * gain[i]);                                         \
            }                                                                                                   \
        }                                                                                                       \
    }

/* dz = dy * gain, sums[i] = sum over rows of dy * z, of `BLOCK` rows into parts [blocks, dim] and then of the blocks. */
#define GAIN_BACK(NAME, T)                                                                                      \
    void gain_back_##NAME(const T *dy, const T *z, const float *gain, T *dz, float *parts, float *sums,         \
                          int64_t rows, int64_t dim) {                                                          \
        int64_t blocks = (rows + BLOCK - 1) / BLOCK, whole = dim / 32 * 32;                                     \
        _Pragma("omp parallel for schedule(static) if (rows * dim > 16384)") for (int64_t block = 0; block < blocks; block++) { \
            int64_t from = block * BLOCK, to = from + BLOCK < rows ? from + BLOCK : rows;                       \
            float *sum = parts + block * dim;                                                                   \
            memset(sum, 0, sizeof(float) * dim);                                                                \
            for (int64_t r = from; r < to; r++) {                                                               \
                const T *g = dy + r * dim, *v = z + r * dim;                                                    \
                T *out = dz + r * dim;                                                                          \
                for (int64_t i = 0; i < whole; i += 32) {                                                       \
                    __builtin_prefetch(g + i + AHEAD);                                                          \
                    __builtin_prefetch(v + i + AHEAD);                                                          \
                    __builtin_prefetch(out + i + AHEAD, 1);                                                     \
                    for (int64_t j = i; j < i + 32; j += LANES) {                                               \
                        vec d = load_vec_##NAME(g + j);                                                         \
                        *(vec *)(sum + j) += d * load_vec_##NAME(v + j);                                        \
                        store_vec_##NAME(out + j, d * *(const vec *)(gain + j));                                \
                    }                                                                                           \
                }                                                                                               \
                for (int64_t i = whole; i < dim; i++) {                                                         \
                    float d = LOAD_##NAME(g[i]);                                                                \
                    sum[i] += d * LOAD_##NAME(v[i]);                                                            \
                    out[i] = STORE_##NAME(d * gain[i]);                                                         \
                }                                                                                               \
            }                                                                                                   \
        }                                                                                                       \
        memset(sums, 0, sizeof(float) * dim);                                                                   \
        for (int64_t block = 0; block < blocks; block++)                                                        \
            for (int64_t i = 0; i < dim; i++) sums[i] += parts[block * dim + i];                                \
    }
#define BLOCK 64   /* rows that are summed before the blocks are: fixed, so that threads change no sum */
#define AHEAD 1024 /* elements: what lies so far on is asked for */

/* murmur3's finaliser */
static inline uint32_t mix(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* mask[i] = value where the hash of i and seed is below `threshold`, else 0 */
#define KEEP_MASK(NAME, T)                                                                                      \
    void keep_mask_##NAME(T *mask, int64_t n, int64_t seed, int64_t threshold, float value) {                   \
        uint32_t low = (uint32_t)seed, high = (uint32_t)((uint64_t)seed >> 32), below = (uint32_t)threshold;    \
        T kept = STORE_##NAME(value);                                                                           \
        _Pragma("omp parallel for simd schedule(static) if (n > 16384)") for (int64_t i = 0; i < n; i++)        \
            mask[i] = mix(mix((uint32_t)i + low) ^ high) < below ? kept : (T)0;                                 \
    }

static inline wide_bits mix_lanes(wide_bits h) {
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* y = x times that mask, in one pass */
#define DROP(NAME, T)                                                                                           \
    void drop_##NAME(const T *x, T *y, int64_t n, int64_t seed, int64_t threshold, float value) {               \
        uint32_t low = (uint32_t)seed, high = (uint32_t)((uint64_t)seed >> 32), below = (uint32_t)threshold;    \
        wide_bits lanes;                                                                                        \
        float kept = LOAD_##NAME(STORE_##NAME(value));                                                          \
        uint32_t bits;                                                                                          \
        memcpy(&bits, &kept, 4);                                                                                \
        for (int j = 0; j < LANES; j++) lanes[j] = j;                                                           \
        int64_t whole = n / LANES * LANES;                                                                      \
        _Pragma("omp parallel for schedule(static) if (n > 16384)") for (int64_t i = 0; i < whole; i += LANES) { \
            wide_bits keep = (wide_bits)(mix_lanes(mix_lanes(lanes + ((uint32_t)i + low)) ^ high) < below) & bits; \
            vec factor;                                                                                         \
            memcpy(&factor, &keep, sizeof(factor));                                                             \
            store_vec_##NAME(y + i, load_vec_##NAME(x + i) * factor);                                           \
        }                                                                                                       \
        for (int64_t i = whole; i < n; i++)                                                                     \
            y[i] = STORE_##NAME(LOAD_##NAME(x[i]) * (mix(mix((uint32_t)i + low) ^ high) < below ? kept : 0.0f)); \
    }

RMS_NORM(f32, float)
RMS_NORM(b16, bf16)
SWIGLU(f32, float)
SWIGLU(b16, bf16)
ROTARY(f32, float)
ROTARY(b16, bf16)
CROSS_ENTROPY(f32, float)
CROSS_ENTROPY(b16, bf16)
GAIN(f32, float)
GAIN(b16, bf16)
GAIN_BACK(f32, float)
GAIN_BACK(b16, bf16)
KEEP_MASK(f32, float)
KEEP_MASK(b16, bf16)
DROP(f32, float)
DROP(b16, bf16)
