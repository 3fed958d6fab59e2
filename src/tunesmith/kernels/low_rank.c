/* What a low-rank change beside a frozen matrix costs beyond the two thin products: for fp32 and bf16 on a CPU.
 *
 *   low_rank_add   y = gain * (y + h b) + shift, in place and rounded once
 *   row_squares    |w + s B A|^2 of each row of W, with no wide copy of W and no matrix B A
 *
 * Every number comes out the same whatever the number of threads, and whatever rows stand beside its own.
 */
#include "portable.h"

#define ROWS 8  /* rows that share what is loaded of b */
#define RANK 32 /* widest change; a wider one is left to the matrix product */
#define PART 512

/* y[count][2 * 16] of rows that lie dim apart, h [count][rank], b [rank][2 * 16] whose rows lie dim apart. */
#define LOW_RANK_ADD(NAME, T)                                                                                   \
    static inline __attribute__((always_inline)) void low_rank_tile_##NAME(                                     \
        T *y, const float h[ROWS][RANK], const float *b, const float *gain, const float *shift, int64_t count,  \
        int64_t rank, int64_t dim) {                                                                            \
        v16 acc[ROWS][2];                                                                                       \
        for (int64_t r = 0; r < count; r++)                                                                     \
            for (int j = 0; j < 2; j++) acc[r][j] = (v16){0};                                                   \
        for (int64_t k = 0; k < rank; k++) {                                                                    \
            v16 b0 = *(const v16 *)(b + k * dim), b1 = *(const v16 *)(b + k * dim + 16);                        \
            for (int64_t r = 0; r < count; r++) acc[r][0] += h[r][k] * b0, acc[r][1] += h[r][k] * b1;           \
        }                                                                                                       \
        for (int64_t r = 0; r < count; r++)                                                                     \
            for (int j = 0; j < 2; j++) {                                                                       \
                v16 out = load16_##NAME(y + r * dim + 16 * j) + acc[r][j];                                      \
                out *= *(const v16 *)(gain + 16 * j);                                                           \
                if (shift) out += *(const v16 *)(shift + 16 * j);                                               \
                store16_##NAME(y + r * dim + 16 * j, out);                                                      \
            }                                                                                                   \
    }                                                                                                           \
    void low_rank_add_##NAME(T *y, const T *h, const float *b, const float *gain, const float *shift,           \
                             int64_t rows, int64_t dim, int64_t rank) {                                         \
        _Pragma("omp parallel for schedule(static) if (rows > 16)") for (int64_t row = 0; row < rows; row += ROWS) { \
            int64_t count = rows - row < ROWS ? rows - row : ROWS, i = 0;                                       \
            float wide[ROWS][RANK];                                                                             \
            T *to = y + row * dim;                                                                              \
            for (int64_t r = 0; r < count; r++)                                                                 \
                for (int64_t k = 0; k < rank; k++) wide[r][k] = LOAD_##NAME(h[(row + r) * rank + k]);           \
            for (; i + 32 <= dim; i += 32) {                                                                    \
                const float *g = gain + i, *s = shift ? shift + i : 0;                                          \
                if (count == ROWS)                                                                              \
                    low_rank_tile_##NAME(to + i, wide, b + i, g, s, ROWS, rank, dim);                           \
                else                                                                                            \
                    low_rank_tile_##NAME(to + i, wide, b + i, g, s, count, rank, dim);                          \
            }                                                                                                   \
            for (; i < dim; i++)                                                                                \
                for (int64_t r = 0; r < count; r++) {                                                           \
                    float out = 0.0f;                                                                           \
                    for (int64_t k = 0; k < rank; k++) out += wide[r][k] * b[k * dim + i];                      \
                    out = (LOAD_##NAME(to[r * dim + i]) + out) * gain[i];                                       \
                    if (shift) out += shift[i];                                                                 \
                    to[r * dim + i] = STORE_##NAME(out);                                                        \
                }                                                                                               \
        }                                                                                                       \
    }

/* out[j] = squares[j] + 2 s b.(A w) + s^2 b.(G b): w [rows, dim], a [rank, dim], gram G = A A^T [rank, rank],
   b [rows, rank]. Four rows of w are widened a part at a time and meet four of a. */
#define ROW_SQUARES(NAME, T)                                                                                    \
    void row_squares_##NAME(const T *w, const float *squares, const float *a, const float *gram, const float *b,\
                          float *out, int64_t rows, int64_t dim, int64_t rank, float scale) {                   \
        _Pragma("omp parallel for schedule(static)") for (int64_t row = 0; row < rows; row += 4) {              \
            int64_t count = rows - row < 4 ? rows - row : 4;                                                    \
            float wide[4][PART] __attribute__((aligned(64)));                                                   \
            double cross[4] = {0};                                                                              \
            memset(wide, 0, sizeof(wide));                                                                      \
            for (int64_t from = 0; from < dim; from += PART) {                                                  \
                int64_t n = from + PART < dim ? PART : dim - from, whole = n / 16 * 16;                         \
                for (int64_t r = 0; r < count; r++) {                                                           \
                    const T *wr = w + (row + r) * dim + from;                                                   \
                    for (int64_t i = 0; i < whole; i += 16) *(v16 *)(wide[r] + i) = load16_##NAME(wr + i);      \
                    for (int64_t i = whole; i < n; i++) wide[r][i] = LOAD_##NAME(wr[i]);                        \
                }                                                                                               \
                for (int64_t k = 0; k < rank; k += 4) {                                                         \
                    const float *ak[4];                                                                         \
                    v16 acc[4][4] = {{{0}}};                                                                    \
                    for (int j = 0; j < 4; j++) ak[j] = a + (k + j < rank ? k + j : k) * dim + from;            \
                    for (int64_t i = 0; i < whole; i += 16)                                                     \
                        for (int j = 0; j < 4; j++) {                                                           \
                            v16 x = *(const v16 *)(ak[j] + i);                                                  \
                            for (int r = 0; r < 4; r++) acc[j][r] += x * *(const v16 *)(wide[r] + i);           \
                        }                                                                                       \
                    for (int64_t j = 0; j < 4 && k + j < rank; j++)                                             \
                        for (int64_t r = 0; r < count; r++) {                                                   \
                            float sum = 0.0f;                                                                   \
                            for (int64_t i = whole; i < n; i++) sum += ak[j][i] * wide[r][i];                   \
                            for (int i = 0; i < 16; i++) sum += acc[j][r][i];                                   \
                            cross[r] += (double)sum * b[(row + r) * rank + k + j];                              \
                        }                                                                                       \
                }                                                                                               \
            }                                                                                                   \
            for (int64_t r = 0; r < count; r++) {                                                               \
                const float *br = b + (row + r) * rank;                                                         \
                double own = 0.0;                                                                               \
                for (int64_t k = 0; k < rank; k++) {                                                            \
                    float sum = 0.0f;                                                                           \
                    for (int64_t l = 0; l < rank; l++) sum += gram[k * rank + l] * br[l];                       \
                    own += (double)sum * br[k];                                                                 \
                }                                                                                               \
                out[row + r] = squares[row + r] + 2.0 * scale * cross[r] + (double)scale * scale * own;         \
            }                                                                                                   \
        }                                                                                                       \
    }

LOW_RANK_ADD(f32, float)
LOW_RANK_ADD(b16, bf16)
ROW_SQUARES(f32, float)
ROW_SQUARES(b16, bf16)
