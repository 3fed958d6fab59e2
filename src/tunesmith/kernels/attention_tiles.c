/* The attention of attention.c in bf16 on processors with matrix tiles (Intel AMX): 16 x 16 x 32 products a turn.
 *
 * Same arguments and units of work. Products multiply bf16 and add in fp32; scores, softmax and its gradient are fp32,
 * probabilities and their gradients are rounded to bf16 before they are multiplied again, as flash kernels on GPUs do.
 *
 * A product c[32][32] = a[32][depth] b[depth][32] reads `a` row by row and `b` in pairs of rows: b2[depth / 2][32] holds
 * (b[2p][n], b[2p + 1][n]) in one word. `pairs` packs rows so; a turned table [rows][dim] -> [dim / 2][rows] is a plain
 * transposition of words. The backward pass works on turned scores [keys][rows], which are ready as left factors.
 */
#include <stdlib.h>

#include "portable.h"

#ifdef __AMX_BF16__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROWS 32
#define TILE 32
#define ALIGNED __attribute__((aligned(64)))

typedef uint32_t word; /* two bf16 */

/* Linux hands out tile registers on request, once for the whole process. */
int64_t has_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static void configure(void) {
    ALIGNED uint8_t config[64] = {1};
    for (int i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64; /* bytes a row */
        config[48 + i] = 16;     /* rows */
    }
    _tile_loadconfig(config);
}

/* c[m][n] (+)= a[m][depth] b2[depth / 2][n]; m, n and depth multiples of 32. Strides in elements. */
static void product(const bf16 *a, int64_t lda, const word *b, int64_t ldb, float *c, int64_t ldc, int64_t m, int64_t n,
                    int64_t depth, int add) {
    for (int64_t i = 0; i < m; i += 32)
        for (int64_t j = 0; j < n; j += 32) {
            float *to = c + i * ldc + j;
            if (add) {
                _tile_loadd(0, to, 4 * ldc); _tile_loadd(1, to + 16, 4 * ldc);
                _tile_loadd(2, to + 16 * ldc, 4 * ldc); _tile_loadd(3, to + 16 * ldc + 16, 4 * ldc);
            } else {
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            }
            for (int64_t p = 0; p < depth; p += 32) {
                const bf16 *left = a + i * lda + p;
                const word *right = b + p / 2 * ldb + j;
                _tile_loadd(4, left, 2 * lda); _tile_loadd(6, right, 4 * ldb);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, right + 16, 4 * ldb);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, left + 16 * lda, 2 * lda);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, 4 * ldc); _tile_stored(1, to + 16, 4 * ldc);
            _tile_stored(2, to + 16 * ldc, 4 * ldc); _tile_stored(3, to + 16 * ldc + 16, 4 * ldc);
        }
}

/* x [count, dim] with `stride` between rows -> out [padded, dim], zeros below. */
static void rows_in(const bf16 *x, int64_t stride, int64_t count, int64_t padded, int64_t dim, bf16 *out) {
    for (int64_t i = 0; i < count; i++) memcpy(out + i * dim, x + i * stride, 2 * dim);
    memset(out + count * dim, 0, 2 * (padded - count) * dim);
}

/* x [rows, columns] -> pairs of rows [rows / 2][columns]. */
static void pairs(const bf16 *x, int64_t rows, int64_t columns, word *out) {
    for (int64_t i = 0; i < rows; i += 2) {
        const bf16 *a = x + i * columns, *b = a + columns;
        word *to = out + i / 2 * columns;
        _Pragma("omp simd") for (int64_t d = 0; d < columns; d++) to[d] = (word)a[d] | (word)b[d] << 16;
    }
}

/* 16 x 16 words, turned. */
static inline void turn16(const word *x, int64_t ldx, word *out, int64_t ldo) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(x + i * ldx);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* r[i + c]: in lane l, column 4 l + c of rows i .. i + 3 */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        __m512i even = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), odd = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i even2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i odd2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        _mm512_storeu_si512(out + c * ldo, _mm512_shuffle_i32x4(even, even2, 0x88));
        _mm512_storeu_si512(out + (4 + c) * ldo, _mm512_shuffle_i32x4(odd, odd2, 0x88));
        _mm512_storeu_si512(out + (8 + c) * ldo, _mm512_shuffle_i32x4(even, even2, 0xdd));
        _mm512_storeu_si512(out + (12 + c) * ldo, _mm512_shuffle_i32x4(odd, odd2, 0xdd));
    }
}

/* Words x [rows, columns] -> [columns, rows], both multiples of 16. */
static void turned_words(const word *x, int64_t rows, int64_t columns, word *out) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t d = 0; d < columns; d += 16) turn16(x + i * columns + d, columns, out + d * rows + i, rows);
}

/* bf16 x [rows, columns] -> [columns, rows]; `spare` holds as much. */
static void turned(const bf16 *x, int64_t rows, int64_t columns, word *spare, bf16 *out) {
    turned_words((const word *)x, rows, columns / 2, spare);
    for (int64_t d = 0; d < columns / 2; d++) {
        bf16 *low = out + 2 * d * rows, *high = low + rows;
        for (int64_t i = 0; i < rows; i++) low[i] = (bf16)spare[d * rows + i], high[i] = (bf16)(spare[d * rows + i] >> 16);
    }
}

/* exp with a relative error near 2e-7; too small is 0, too large infinite. */
static inline __m512 exp16(__m512 x) {
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, f), f, f), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static inline void store16(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

/* Of sixteen numbers that begin at `at`, those in [low, high). */
static inline __mmask16 between(int64_t at, int64_t low, int64_t high) {
    int64_t first = low > at ? low - at : 0, last = high - at < 16 ? high - at : 16;
    return first >= last ? 0 : (__mmask16)((0xffffu >> (16 - last + first)) << first);
}

/* Of sixteen keys that begin at `at`, those in [0, shared) or [low, high). */
static inline __mmask16 seen(int64_t at, int64_t shared, int64_t low, int64_t high) {
    __mmask16 own = between(at, low, high);
    return at < shared ? own | between(at, 0, shared) : own;
}

static inline int64_t round_up(int64_t n) { return (n + TILE - 1) / TILE * TILE; }

static int64_t longest_of(const int64_t *bounds, int64_t documents) {
    int64_t longest = 0;
    for (int64_t n = 0; n < documents; n++)
        longest = bounds[n + 1] - bounds[n] > longest ? bounds[n + 1] - bounds[n] : longest;
    return longest;
}

/* Keys [first, last) that rows [row, row + ROWS) of a document may see, in whole tiles. */
static inline void span(int64_t row, int64_t length, int64_t window, int64_t *first, int64_t *last) {
    int64_t low = window > 0 && row - window + 1 > 0 ? row - window + 1 : 0;
    *first = low / TILE * TILE;
    *last = round_up(row + ROWS < length ? row + ROWS : length);
}

/* The next `count` elements of a scratch block. */
#define TAKE(type, count) (type *)(at += ((count) * sizeof(type) + 63) / 64 * 64, at - ((count) * sizeof(type) + 63) / 64 * 64)

void attention_tiles_b16(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse, const int64_t *bounds,
                         const int64_t *see, int64_t documents, int64_t tokens, int64_t heads, int64_t groups,
                         int64_t dim, int64_t window, float scale) {
    int64_t most = round_up(longest_of(bounds, documents));
    _Pragma("omp parallel") {
        char *all = aligned_alloc(64, (10 * most * dim + 8 * ROWS * (most + dim) + 4096) / 64 * 64), *at = all;
        word *kt = TAKE(word, most * dim / 2), *v2 = TAKE(word, most * dim / 2);
        bf16 *rows = TAKE(bf16, most * dim), *p = TAKE(bf16, ROWS * most), *qb = TAKE(bf16, ROWS * dim);
        float *s = TAKE(float, ROWS * most), *o = TAKE(float, ROWS * dim), inverse[ROWS];
        configure();
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t unit = documents * heads - 1; unit >= 0; unit--) {
            int64_t n = unit / heads, h = unit % heads, g = h / (heads / groups);
            int64_t start = bounds[n], length = bounds[n + 1] - start, padded = round_up(length);
            rows_in(k + (start * groups + g) * dim, groups * dim, length, padded, dim, rows);
            turned_words((const word *)rows, padded, dim / 2, kt);
            rows_in(v + (start * groups + g) * dim, groups * dim, length, padded, dim, rows);
            pairs(rows, padded, dim, v2);
            for (int64_t row = 0; row < length; row += ROWS) {
                int64_t count = length - row < ROWS ? length - row : ROWS, first, last;
                span(row, length, window, &first, &last);
                rows_in(q + ((start + row) * heads + h) * dim, heads * dim, count, ROWS, dim, qb);
                product(qb, dim, kt + first, padded, s + first, padded, ROWS, last - first, dim, 0);
                for (int64_t i = 0; i < ROWS; i++) {
                    const float *si = s + i * padded;
                    int64_t end = row + i + 1 < length ? row + i + 1 : length;
                    int64_t low = window > 0 && end - window > first ? end - window : first;
                    int64_t shared = see[start + end - 1], branch = see[tokens + start + end - 1];
                    low = branch > low ? branch : low;
                    __m512 most_of = _mm512_set1_ps(-INFINITY), sums = _mm512_setzero_ps();
                    for (int64_t j = first; j < last; j += 16)
                        most_of = _mm512_mask_max_ps(most_of, seen(j, shared, low, end), most_of, _mm512_load_ps(si + j));
                    float highest = _mm512_reduce_max_ps(most_of);
                    for (int64_t j = first; j < last; j += 16) {
                        __m512 x = _mm512_sub_ps(_mm512_load_ps(si + j), _mm512_set1_ps(highest));
                        __m512 e = _mm512_maskz_mov_ps(seen(j, shared, low, end), exp16(_mm512_mul_ps(x, _mm512_set1_ps(scale))));
                        sums = _mm512_add_ps(sums, e);
                        store16(p + i * padded + j, e);
                    }
                    float sum = _mm512_reduce_add_ps(sums);
                    inverse[i] = 1.0f / sum;
                    if (i < count) lse[h * tokens + start + row + i] = scale * highest + logf(sum);
                }
                product(p + first, padded, v2 + first / 2 * dim, dim, o, dim, ROWS, dim, last - first, 0);
                bf16 *to = out + ((start + row) * heads + h) * dim;
                for (int64_t i = 0; i < count; i++)
                    for (int64_t d = 0; d < dim; d += 16)
                        store16(to + i * heads * dim + d,
                                _mm512_mul_ps(_mm512_load_ps(o + i * dim + d), _mm512_set1_ps(inverse[i])));
            }
        }
        _tile_release();
        free(all);
    }
}

void attention_tiles_back_b16(const bf16 *dout, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *out,
                              const float *lse, bf16 *dq, float *dk, float *dv, const int64_t *bounds,
                              const int64_t *see, int64_t documents, int64_t tokens, int64_t heads, int64_t groups,
                              int64_t dim, int64_t window, float scale) {
    int64_t most = round_up(longest_of(bounds, documents));
    _Pragma("omp parallel") {
        char *all = aligned_alloc(64, (16 * most * dim + 14 * ROWS * most + 20 * ROWS * dim + 8192) / 64 * 64), *at = all;
        word *spare = TAKE(word, most * dim / 2);
        bf16 *kb = TAKE(bf16, most * dim), *kt = TAKE(bf16, most * dim), *vb = TAKE(bf16, most * dim);
        float *sum_k = TAKE(float, most * dim), *sum_v = TAKE(float, most * dim);
        float *s = TAKE(float, ROWS * most), *dp = TAKE(float, ROWS * most), *dqt = TAKE(float, ROWS * dim);
        float *dqb = TAKE(float, ROWS * dim);
        bf16 *p = TAKE(bf16, ROWS * most), *ds = TAKE(bf16, ROWS * most);
        word *ds2 = TAKE(word, ROWS * most / 2);
        bf16 *qb = TAKE(bf16, ROWS * dim), *gb = TAKE(bf16, ROWS * dim);
        word *qt = TAKE(word, ROWS * dim / 2), *gt = TAKE(word, ROWS * dim / 2);
        word *q2 = TAKE(word, ROWS * dim / 2), *g2 = TAKE(word, ROWS * dim / 2);
        configure();
        _Pragma("omp for schedule(dynamic, 1)") for (int64_t unit = documents * heads - 1; unit >= 0; unit--) {
            int64_t n = unit / heads, h = unit % heads, g = h / (heads / groups);
            int64_t start = bounds[n], length = bounds[n + 1] - start, padded = round_up(length);
            rows_in(k + (start * groups + g) * dim, groups * dim, length, padded, dim, kb);
            turned(kb, padded, dim, spare, kt);
            rows_in(v + (start * groups + g) * dim, groups * dim, length, padded, dim, vb);
            memset(sum_k, 0, sizeof(float) * padded * dim);
            memset(sum_v, 0, sizeof(float) * padded * dim);
            for (int64_t row = 0; row < length; row += ROWS) {
                int64_t count = length - row < ROWS ? length - row : ROWS, first, last;
                int64_t from = ((start + row) * heads + h) * dim;
                ALIGNED float delta[ROWS], sums[ROWS];
                span(row, length, window, &first, &last);
                rows_in(q + from, heads * dim, count, ROWS, dim, qb);
                rows_in(dout + from, heads * dim, count, ROWS, dim, gb);
                turned_words((const word *)qb, ROWS, dim / 2, qt);
                turned_words((const word *)gb, ROWS, dim / 2, gt);
                pairs(qb, ROWS, dim, q2);
                pairs(gb, ROWS, dim, g2);
                for (int64_t i = 0; i < ROWS; i++) {
                    float total = 0.0f;
                    const bf16 *o = out + from + i * heads * dim;
                    if (i < count) {
                        _Pragma("omp simd reduction(+ : total)") for (int64_t d = 0; d < dim; d++)
                            total += from_bf16(gb[i * dim + d]) * from_bf16(o[d]);
                    }
                    delta[i] = total;
                    sums[i] = i < count ? lse[h * tokens + start + row + i] : INFINITY; /* padding: all is 0 */
                }
                int64_t keys = last - first;
                product(kb + first * dim, dim, qt, ROWS, s, ROWS, keys, ROWS, dim, 0);
                product(vb + first * dim, dim, gt, ROWS, dp, ROWS, keys, ROWS, dim, 0);
                for (int64_t j = 0; j < keys; j++) {
                    int64_t key = first + j - row; /* seen by the rows [key, key + window) of this block */
                    int64_t high = window > 0 && key + window < count ? key + window : count;
                    int64_t until = first + j < length ? see[2 * tokens + start + first + j] - row : 0;
                    high = until < high ? until : high;
                    for (int64_t i = 0; i < ROWS; i += 16) {
                        int64_t at = j * ROWS + i;
                        __mmask16 sees = between(i, key, high);
                        __m512 x = _mm512_fmsub_ps(_mm512_set1_ps(scale), _mm512_load_ps(s + at), _mm512_load_ps(sums + i));
                        __m512 e = _mm512_maskz_mov_ps(sees, exp16(x));
                        __m512 d = _mm512_sub_ps(_mm512_load_ps(dp + at), _mm512_load_ps(delta + i));
                        store16(p + at, e);
                        store16(ds + at, _mm512_maskz_mul_ps(sees, e, d));
                    }
                }
                pairs(ds, keys, ROWS, ds2);
                product(kt + first, padded, ds2, ROWS, dqt, ROWS, dim, ROWS, keys, 0);
                product(ds, ROWS, q2, dim, sum_k + first * dim, dim, keys, dim, ROWS, 1);
                product(p, ROWS, g2, dim, sum_v + first * dim, dim, keys, dim, ROWS, 1);
                turned_words((const word *)dqt, dim, ROWS, (word *)dqb);
                for (int64_t i = 0; i < count; i++)
                    for (int64_t d = 0; d < dim; d += 16)
                        store16(dq + from + i * heads * dim + d,
                                _mm512_mul_ps(_mm512_load_ps(dqb + i * dim + d), _mm512_set1_ps(scale)));
            }
            for (int64_t i = 0; i < length; i++) {
                int64_t to = ((start + i) * heads + h) * dim;
                _Pragma("omp simd") for (int64_t d = 0; d < dim; d++) dk[to + d] = scale * sum_k[i * dim + d];
                memcpy(dv + to, sum_v + i * dim, sizeof(float) * dim);
            }
        }
        _tile_release();
        free(all);
    }
}

#else
int64_t has_tiles(void) { return 0; }
#endif
