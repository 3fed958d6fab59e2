/* What a low-rank change beside a frozen matrix costs beyond the two thin products: for fp32 and bf16 on a CPU.
 *
 *   low_rank_add   y = gain * (y + h b) + shift, in place and rounded once; 0 and y left alone where a gain is small
 *   row_squares    |w + s B A|^2 of each row of W, with no wide copy of W and no matrix B A
 *
 * Every number comes out the same whatever the number of threads, and whatever rows stand beside its own.
 */
#include "portable.h"

#define ROWS TILE_ROWS /* rows that share what is loaded of b */
#define RANK 32        /* widest change; a wider one is left to the matrix product */
#define PART 2048
#define MEET (TILE_ROWS / 2) /* rows of A that meet four rows of W at once */

/* y[count][2 * LANES] of rows that lie dim apart, h [count][rank], b [rank][2 * LANES] whose rows lie dim apart. */
#define LOW_RANK_ADD(NAME, T)                                                                                   \
    static inline __attribute__((always_inline)) void low_rank_tile_##NAME(                                     \
        T *y, const float h[ROWS][RANK], const float *b, const float *gain, const float *shift, int64_t count,  \
        int64_t rank, int64_t dim) {                                                                            \
        vec acc[ROWS][2];                                                                                       \
        for (int64_t r = 0; r < count; r++)                                                                     \
            for (int j = 0; j < 2; j++) acc[r][j] = (vec){0};                                                   \
        for (int64_t k = 0; k < rank; k++) {                                                                    \
            vec b0 = *(const vec *)(b + k * dim), b1 = *(const vec *)(b + k * dim + LANES);                     \
            for (int64_t r = 0; r < count; r++) acc[r][0] += h[r][k] * b0, acc[r][1] += h[r][k] * b1;           \
        }                                                                                                       \
        for (int64_t r = 0; r < count; r++)                                                                     \
            for (int j = 0; j < 2; j++) {                                                                       \
                vec out = load_vec_##NAME(y + r * dim + LANES * j) + acc[r][j];                                 \
                out *= *(const vec *)(gain + LANES * j);                                                        \
                if (shift) out += *(const vec *)(shift + LANES * j);                                            \
                store_vec_##NAME(y + r * dim + LANES * j, out);                                                 \
            }                                                                                                   \
    }                                                                                                           \
    int low_rank_add_##NAME(T *y, const T *h, const float *b, const float *gain, const float *shift,            \
                            int64_t rows, int64_t dim, int64_t rank, float smallest) {                          \
        int small = 0;                                                                                          \
        for (int64_t i = 0; i < dim; i++) small |= !(fabsf(gain[i]) >= smallest);                               \
        if (small) return 0;                                                                                    \
        _Pragma("omp parallel for schedule(static) if (rows > 16)") for (int64_t row = 0; row < rows; row += ROWS) { \
            int64_t count = rows - row < ROWS ? rows - row : ROWS, i = 0;                                       \
            float wide[ROWS][RANK];                                                                             \
            T *to = y + row * dim;                                                                              \
            for (int64_t r = 0; r < count; r++)                                                                 \
                for (int64_t k = 0; k < rank; k++) wide[r][k] = LOAD_##NAME(h[(row + r) * rank + k]);           \
            for (; i + 2 * LANES <= dim; i += 2 * LANES) {                                                      \
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
        return 1;                                                                                               \
    }

static inline float dot(const float *a, const float *b, int64_t n) {
    vec lanes = {0};
    float sum = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) lanes += *(const vec *)(a + i) * *(const vec *)(b + i);
    for (; i < n; i++) sum += a[i] * b[i];
    for (int j = 0; j < LANES; j++) sum += lanes[j];
    return sum;
}

/* out[j] = squares[j] + 2 s b.(A w) + s^2 b.(G b): w [rows, dim], a [rank, dim], b [rows, rank]; the Gram matrix
   G = A A^T goes into gram [rank, 16 * ceil(rank / 16)]. Four rows of w are widened a part at a time and meet MEET of a;
   what they give is summed over the lanes once a row. Nothing comes out below 0; returns whether something is 0. */
#define ROW_SQUARES(NAME, T)                                                                                    \
    int row_squares_##NAME(const T *w, const float *squares, const float *a, float *gram, const float *b,       \
                           float *out, int64_t rows, int64_t dim, int64_t rank, float scale) {                  \
        int64_t wide_rank = (rank + 15) / 16 * 16;                                                              \
        int empty = 0;                                                                                          \
        _Pragma("omp parallel for schedule(static) if (rank > 16)") for (int64_t k = 0; k < rank; k++)          \
            for (int64_t l = 0; l < wide_rank; l++) gram[k * wide_rank + l] = l < rank ? dot(a + k * dim, a + l * dim, dim) : 0.0f; \
        _Pragma("omp parallel for schedule(static)") for (int64_t row = 0; row < rows; row += 4) {              \
            int64_t count = rows - row < 4 ? rows - row : 4;                                                    \
            float wide[4][PART] __attribute__((aligned(64)));                                                   \
            vec cross[4] = {{0}};                                                                               \
            if (count < 4) memset(wide, 0, sizeof(wide));                                                       \
            for (int64_t from = 0; from < dim; from += PART) {                                                  \
                int64_t n = from + PART < dim ? PART : dim - from, whole = n / LANES * LANES;                   \
                for (int64_t r = 0; r < count; r++) {                                                           \
                    const T *wr = w + (row + r) * dim + from;                                                   \
                    for (int64_t i = 0; i < whole; i += LANES) *(vec *)(wide[r] + i) = load_vec_##NAME(wr + i); \
                    for (int64_t i = whole; i < n; i++) wide[r][i] = LOAD_##NAME(wr[i]);                        \
                }                                                                                               \
                for (int64_t k = 0; k < rank; k += MEET) {                                                      \
                    const float *ak[MEET];                                                                      \
                    vec acc[MEET][4] = {{{0}}};                                                                 \
                    for (int j = 0; j < MEET; j++) ak[j] = a + (k + j < rank ? k + j : k) * dim + from;         \
                    for (int64_t i = 0; i < whole; i += LANES)                                                  \
                        for (int j = 0; j < MEET; j++) {                                                        \
                            vec x = *(const vec *)(ak[j] + i);                                                  \
                            for (int r = 0; r < 4; r++) acc[j][r] += x * *(const vec *)(wide[r] + i);           \
                        }                                                                                       \
                    for (int64_t i = whole; i < n; i++)                                                         \
                        for (int j = 0; j < MEET; j++)                                                          \
                            for (int r = 0; r < 4; r++) acc[j][r][0] += ak[j][i] * wide[r][i];                  \
                    for (int j = 0; j < MEET; j++)                                                              \
                        for (int r = 0; r < 4; r++)                                                             \
                            cross[r] += acc[j][r] * (k + j < rank && r < count ? b[(row + r) * rank + k + j] : 0.0f); \
                }                                                                                               \
            }                                                                                                   \
            for (int64_t r = 0; r < count; r++) {                                                               \
                const float *br = b + (row + r) * rank;                                                         \
                float own = 0.0f, met = 0.0f;                                                                   \
                for (int64_t l = 0; l < rank; l += LANES) {                                                     \
                    vec mixed = {0}, some = {0};                                                                \
                    for (int64_t k = 0; k < rank; k++) mixed += br[k] * *(const vec *)(gram + k * wide_rank + l); \
                    for (int64_t i = 0; i < LANES && l + i < rank; i++) some[i] = br[l + i];                    \
                    some *= mixed;                                                                              \
                    for (int i = 0; i < LANES; i++) own += some[i];                                             \
                }                                                                                               \
                for (int i = 0; i < LANES; i++) met += cross[r][i];                                             \
                double square = squares[row + r] + 2.0 * scale * met + (double)scale * scale * own;             \
                out[row + r] = square <= 0.0 ? 0.0 : square;                                                    \
            }                                                                                                   \
        }                                                                                                       \
        for (int64_t row = 0; row < rows; row++) empty |= out[row] == 0.0f;                                     \
        return empty;                                                                                           \
    }

LOW_RANK_ADD(f32, float)
LOW_RANK_ADD(b16, bf16)
ROW_SQUARES(f32, float)
ROW_SQUARES(b16, bf16)
