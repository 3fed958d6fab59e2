/* Causal attention of many documents in one flat row, forward and backward, in fp32 on a CPU.
 *
 * A unit of work is one head of one document; units go to threads longest first. Each copies its keys and values into
 * padded local tables, so that the products below run on whole tiles of numbers held in registers, and skips the keys
 * that its rows may not see. Inputs and outputs are fp32 or bf16.
 *
 *   q, out, dout, dq [tokens, heads, dim]   k, v [tokens, groups, dim]   dk, dv [tokens, heads, dim] (summed by the caller)
 *   lse [heads, tokens] natural logarithm of each row's sum      bounds [documents + 1]      window 0: none
 *   see [3, tokens] what a row may see, counted from its document's start: a row i sees the keys [0, see[0][i]) and
 *   [see[1][i], i], a key j is seen by the rows [j, see[2][j]). A plain document has 0, 0 and its length; in one whose
 *   beginning is shared by branches, a branch sees the beginning and itself. Such documents come without a window.
 */
#include <stdlib.h>

#include "portable.h"

#define ROWS 32
#define TILE 32

static inline int64_t round_up(int64_t n) { return (n + TILE - 1) / TILE * TILE; }

/* c[TILE_ROWS][2 * LANES] = (add ? c : 0) + a[.][depth] b[depth][.]; a(i, p) = a[i * ai + p * ap]. */
static inline void tile(const float *a, int64_t ai, int64_t ap, const float *b, int64_t ldb, float *c, int64_t ldc,
                        int64_t depth, int add) {
    vec acc[TILE_ROWS][2];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < 2; j++) acc[i][j] = add ? *(const vec *)(c + i * ldc + LANES * j) : (vec){0};
    for (int64_t p = 0; p < depth; p++) {
        vec b0 = *(const vec *)(b + p * ldb), b1 = *(const vec *)(b + p * ldb + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < TILE_ROWS; i++) {
            float x = a[i * ai + p * ap];
            acc[i][0] += x * b0;
            acc[i][1] += x * b1;
        }
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < 2; j++) *(vec *)(c + i * ldc + LANES * j) = acc[i][j];
}

/* c[m][n] (+)= a[m][depth] b[depth][n], m and n multiples of a tile's sides. */
static void product(const float *a, int64_t ai, int64_t ap, const float *b, int64_t ldb, float *c, int64_t ldc,
                    int64_t m, int64_t n, int64_t depth, int add) {
    for (int64_t j = 0; j < n; j += 2 * LANES)
        for (int64_t i = 0; i < m; i += TILE_ROWS)
            tile(a + i * ai, ai, ap, b + j, ldb, c + i * ldc + j, ldc, depth, add);
}

typedef struct {
    float *k, *v, *kt, *vt;      /* [padded, dim] and, turned, [dim, padded] */
    float *q, *o, *d_o, *s, *dp; /* [ROWS, dim], [ROWS, padded] */
    float *dk, *dv, *dq;         /* [padded, dim], [ROWS, dim] */
    float *all;
} scratch;

static scratch make_scratch(int64_t padded, int64_t dim) {
    int64_t table = padded * dim, block = ROWS * dim, wide = ROWS * padded;
    float *p = malloc(sizeof(float) * (6 * table + 4 * block + 2 * wide) + 64);
    scratch w;
    w.all = p;
    w.k = p, p += table, w.v = p, p += table, w.kt = p, p += table, w.vt = p, p += table, w.dk = p, p += table;
    w.dv = p, p += table, w.q = p, p += block, w.o = p, p += block, w.d_o = p, p += block, w.dq = p, p += block;
    w.s = p, p += wide, w.dp = p;
    return w;
}

/* Keys [first, last) that rows [row, row + ROWS) of a document may see, in whole tiles. */
static inline void span(int64_t row, int64_t length, int64_t window, int64_t *first, int64_t *last) {
    int64_t low = window > 0 && row - window + 1 > 0 ? row - window + 1 : 0;
    int64_t high = row + ROWS < length ? row + ROWS : length;
    *first = low / TILE * TILE;
    *last = round_up(high);
}

#define ATTENTION(NAME, T)                                                                                       \
    static void rows_in_##NAME(const T *x, int64_t stride, int64_t count, int64_t padded, int64_t dim, float scale, \
                               float *out) {                                                                    \
        for (int64_t i = 0; i < count; i++)                                                                     \
            for (int64_t d = 0; d < dim; d++) out[i * dim + d] = scale * LOAD_##NAME(x[i * stride + d]);        \
        memset(out + count * dim, 0, sizeof(float) * (padded - count) * dim);                                   \
    }                                                                                                           \
    static void turned_##NAME(const float *x, int64_t padded, int64_t dim, float *out) {                        \
        for (int64_t b = 0; b < padded; b += 16)                                                                \
            for (int64_t d = 0; d < dim; d++)                                                                   \
                for (int64_t i = 0; i < 16; i++) out[d * padded + b + i] = x[(b + i) * dim + d];                \
    }                                                                                                           \
    void attention_##NAME(const T *q, const T *k, const T *v, T *out, float *lse, const int64_t *bounds,        \
                          const int64_t *see, int64_t documents, int64_t tokens, int64_t heads, int64_t groups, \
                          int64_t dim, int64_t window, float scale) {                                           \
        int64_t longest = 0;                                                                                    \
        for (int64_t n = 0; n < documents; n++)                                                                 \
            longest = bounds[n + 1] - bounds[n] > longest ? bounds[n + 1] - bounds[n] : longest;                \
        _Pragma("omp parallel") {                                                                               \
            scratch w = make_scratch(round_up(longest), dim);                                                   \
            _Pragma("omp for schedule(dynamic, 1)") for (int64_t unit = documents * heads - 1; unit >= 0; unit--) { \
                int64_t n = unit / heads, h = unit % heads, g = h / (heads / groups);                           \
                int64_t start = bounds[n], length = bounds[n + 1] - start, padded = round_up(length);           \
                rows_in_##NAME(k + (start * groups + g) * dim, groups * dim, length, padded, dim, 1.0f, w.k);   \
                turned_##NAME(w.k, padded, dim, w.kt);                                                          \
                rows_in_##NAME(v + (start * groups + g) * dim, groups * dim, length, padded, dim, 1.0f, w.v);   \
                for (int64_t row = 0; row < length; row += ROWS) {                                              \
                    int64_t count = length - row < ROWS ? length - row : ROWS, first, last;                     \
                    span(row, length, window, &first, &last);                                                   \
                    const T *own = q + ((start + row) * heads + h) * dim;                                       \
                    rows_in_##NAME(own, heads * dim, count, ROWS, dim, scale, w.q);                             \
                    product(w.q, dim, 1, w.kt + first, padded, w.s + first, padded, ROWS, last - first, dim, 0); \
                    for (int64_t i = 0; i < ROWS; i++) {                                                        \
                        float *s = w.s + i * padded, highest = -INFINITY, sum = 0.0f;                           \
                        int64_t end = row + i + 1 < length ? row + i + 1 : length;                              \
                        int64_t low = window > 0 && end - window > first ? end - window : first;                \
                        int64_t shared = see[start + end - 1], branch = see[tokens + start + end - 1];          \
                        low = branch > low ? branch : low;                                                      \
                        for (int64_t j = first > shared ? first : shared; j < low; j++) s[j] = 0.0f;            \
                        _Pragma("omp simd reduction(max : highest)") for (int64_t j = 0; j < shared; j++)       \
                            highest = s[j] > highest ? s[j] : highest;                                          \
                        _Pragma("omp simd reduction(max : highest)") for (int64_t j = low; j < end; j++)        \
                            highest = s[j] > highest ? s[j] : highest;                                          \
                        _Pragma("omp simd reduction(+ : sum)") for (int64_t j = 0; j < shared; j++) {           \
                            s[j] = fast_exp(s[j] - highest);                                                    \
                            sum += s[j];                                                                        \
                        }                                                                                       \
                        _Pragma("omp simd reduction(+ : sum)") for (int64_t j = low; j < end; j++) {            \
                            s[j] = fast_exp(s[j] - highest);                                                    \
                            sum += s[j];                                                                        \
                        }                                                                                       \
                        for (int64_t j = end; j < last; j++) s[j] = 0.0f;                                       \
                        w.dq[i] = 1.0f / sum;                                                                   \
                        if (i < count) lse[h * tokens + start + row + i] = highest + logf(sum);                 \
                    }                                                                                           \
                    product(w.s + first, padded, 1, w.v + first * dim, dim, w.o, dim, ROWS, dim, last - first, 0); \
                    T *to = out + ((start + row) * heads + h) * dim;                                            \
                    for (int64_t i = 0; i < count; i++)                                                         \
                        for (int64_t d = 0; d < dim; d++)                                                       \
                            to[i * heads * dim + d] = STORE_##NAME(w.o[i * dim + d] * w.dq[i]);                 \
                }                                                                                               \
            }                                                                                                   \
            free(w.all);                                                                                        \
        }                                                                                                       \
    }                                                                                                           \
    void attention_back_##NAME(const T *dout, const T *q, const T *k, const T *v, const T *out, const float *lse, \
                               T *dq, float *dk, float *dv, const int64_t *bounds, const int64_t *see,          \
                               int64_t documents, int64_t tokens, int64_t heads, int64_t groups, int64_t dim,   \
                               int64_t window, float scale) {                                                   \
        int64_t longest = 0;                                                                                    \
        for (int64_t n = 0; n < documents; n++)                                                                 \
            longest = bounds[n + 1] - bounds[n] > longest ? bounds[n + 1] - bounds[n] : longest;                \
        _Pragma("omp parallel") {                                                                               \
            scratch w = make_scratch(round_up(longest), dim);                                                   \
            _Pragma("omp for schedule(dynamic, 1)") for (int64_t unit = documents * heads - 1; unit >= 0; unit--) { \
                int64_t n = unit / heads, h = unit % heads, g = h / (heads / groups);                           \
                int64_t start = bounds[n], length = bounds[n + 1] - start, padded = round_up(length);           \
                rows_in_##NAME(k + (start * groups + g) * dim, groups * dim, length, padded, dim, 1.0f, w.k);   \
                turned_##NAME(w.k, padded, dim, w.kt);                                                          \
                rows_in_##NAME(v + (start * groups + g) * dim, groups * dim, length, padded, dim, 1.0f, w.v);   \
                turned_##NAME(w.v, padded, dim, w.vt);                                                          \
                memset(w.dk, 0, sizeof(float) * padded * dim);                                                  \
                memset(w.dv, 0, sizeof(float) * padded * dim);                                                  \
                for (int64_t row = 0; row < length; row += ROWS) {                                              \
                    int64_t count = length - row < ROWS ? length - row : ROWS, first, last;                     \
                    int64_t at = ((start + row) * heads + h) * dim;                                             \
                    span(row, length, window, &first, &last);                                                   \
                    rows_in_##NAME(q + at, heads * dim, count, ROWS, dim, scale, w.q);                          \
                    rows_in_##NAME(dout + at, heads * dim, count, ROWS, dim, 1.0f, w.d_o);                      \
                    rows_in_##NAME(out + at, heads * dim, count, ROWS, dim, 1.0f, w.o);                         \
                    product(w.q, dim, 1, w.kt + first, padded, w.s + first, padded, ROWS, last - first, dim, 0); \
                    product(w.d_o, dim, 1, w.vt + first, padded, w.dp + first, padded, ROWS, last - first, dim, 0); \
                    for (int64_t i = 0; i < ROWS; i++) {                                                        \
                        float *s = w.s + i * padded, *dp = w.dp + i * padded, delta = 0.0f;                     \
                        int64_t end = i < count ? row + i + 1 : first;                                          \
                        int64_t low = window > 0 && end - window > first ? end - window : first, shared = 0;    \
                        if (i < count) {                                                                        \
                            int64_t branch = see[tokens + start + row + i];                                     \
                            shared = see[start + row + i], low = branch > low ? branch : low;                   \
                        }                                                                                       \
                        float sum = i < count ? lse[h * tokens + start + row + i] : 0.0f;                       \
                        _Pragma("omp simd reduction(+ : delta)") for (int64_t d = 0; d < dim; d++)              \
                            delta += w.d_o[i * dim + d] * w.o[i * dim + d];                                     \
                        for (int64_t j = first > shared ? first : shared; j < low; j++) s[j] = dp[j] = 0.0f;    \
                        _Pragma("omp simd") for (int64_t j = 0; j < shared; j++) {                              \
                            s[j] = fast_exp(s[j] - sum);                                                        \
                            dp[j] = s[j] * (dp[j] - delta);                                                     \
                        }                                                                                       \
                        _Pragma("omp simd") for (int64_t j = low; j < end; j++) {                               \
                            s[j] = fast_exp(s[j] - sum);                                                        \
                            dp[j] = s[j] * (dp[j] - delta);                                                     \
                        }                                                                                       \
                        for (int64_t j = end > low ? end : low; j < last; j++) s[j] = dp[j] = 0.0f;             \
                    }                                                                                           \
                    int64_t seen = last - first;                                                                \
                    product(w.dp + first, padded, 1, w.k + first * dim, dim, w.dq, dim, ROWS, dim, seen, 0);    \
                    product(w.dp + first, 1, padded, w.q, dim, w.dk + first * dim, dim, seen, dim, ROWS, 1);    \
                    product(w.s + first, 1, padded, w.d_o, dim, w.dv + first * dim, dim, seen, dim, ROWS, 1);   \
                    for (int64_t i = 0; i < count; i++)                                                         \
                        for (int64_t d = 0; d < dim; d++)                                                       \
                            dq[at + i * heads * dim + d] = STORE_##NAME(scale * w.dq[i * dim + d]);             \
                }                                                                                               \
                for (int64_t i = 0; i < length; i++) {                                                          \
                    int64_t to = ((start + i) * heads + h) * dim;                                               \
                    memcpy(dk + to, w.dk + i * dim, sizeof(float) * dim);                                       \
                    memcpy(dv + to, w.dv + i * dim, sizeof(float) * dim);                                       \
                }                                                                                               \
            }                                                                                                   \
            free(w.all);                                                                                        \
        }                                                                                                       \
    }

ATTENTION(f32, float)
ATTENTION(b16, bf16)
