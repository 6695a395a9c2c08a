/* Candidates' rows -> scores, in one call: the whole split scorer (design: model, "Scoring"). Contract: score.py.
 *
 * 64 rows at a time stay in L1 from the row's halves to the logit: h_i and the bag's rows are summed, the tiers are
 * counted (tiers.c), the first layer's product is added, layer norm, the head. The linear term is a row of 16 for each
 * half byte of the signature; four bytes' worth of them (32 KiB at H = 64) serve all 64 items before the next four, so
 * they are read from L1 however long signatures are. Nothing of the size of the batch is written but the scores. */
#define _POSIX_C_SOURCE 199309L
#include "score.h"

#include <math.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#define INLINE inline __attribute__((always_inline))
#define VALID 1
#define TOMBSTONE 2
#define HAS_CONTENT 4
#define MAX_BAG 3 /* category, second key, code */

struct work {
    float *x, *hidden, *head; /* [BLOCK][width], [BLOCK][Hp], [BLOCK][Fp] */
    uint32_t *pairs;          /* bf16: [BLOCK][max(width, Hp) / 2], else NULL */
    uint32_t *first_pairs;    /* bf16: [width / 2][Hp] */
    uint32_t *up_pairs;       /* bf16: [Hp / 2][Fp] */
};

static INLINE int32_t int_at(const uint8_t *p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static INLINE float half_to_float(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f; /* the exponents' bases differ by 112; makes subnormal halves right too */
    memcpy(&bits, &value, sizeof bits);
    if ((half & 0x7c00) == 0x7c00)
        bits |= 0x7f800000;
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The rows of the bag that belong to an item but those of its signature; how many. A value that the version does not
 * know counts as none. */
static INLINE int bag_rows(const struct aif_scorer *m, const struct aif_user *u, const uint8_t *row,
                           const float **from) {
    int n = 0;
    const int64_t category = int_at(row + m->at_category);
    const int64_t known = category >= 0 && category < m->categories ? category + 1 : 0;
    from[n++] = u->bag + u->category_row[known] * m->Hp;
    if (u->key2_row) {
        const int64_t key = int_at(row + m->at_key2);
        from[n++] = u->bag + u->key2_row[key >= 0 && key < m->keys2 ? key + 1 : 0] * m->Hp;
    }
    if (u->code_row >= 0 && row[m->at_flags] & HAS_CONTENT) {
        const int64_t code = (uint32_t)int_at(row + m->at_code);
        if (code < m->codes)
            from[n++] = u->bag + (u->code_row + code) * m->Hp;
    }
    return n;
}

/* ---- portable: vectors of GCC and clang, whatever the machine makes of four floats -------------------------------- */
#define NAME(x) x##_portable
#define TARGET
#define FLOATS 4
#define HALVES(p)                                                                                                     \
    (vec_portable) { half_to_float(p), half_to_float((p) + 2), half_to_float((p) + 4), half_to_float((p) + 6) }
#define SUM(v) ((v)[0] + (v)[1] + ((v)[2] + (v)[3]))
#define TILE_ROWS 4
#define TILE_VECS 2
#include "score_level.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* ---- AVX2, FMA, F16C ---------------------------------------------------------------------------------------------- */
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define FLOATS 8
#define HALVES(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define SUM(v) sum8(v)
#define TILE_ROWS 4
#define TILE_VECS 2
TARGET static INLINE float sum8(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
#include "score_level.h"

/* ---- AVX-512, with bf16 products where the CPU has them ----------------------------------------------------------- */
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,fma,f16c")))
#define FLOATS 16
#define HALVES(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define SUM(v) _mm512_reduce_add_ps(v)
#define TILE_ROWS 8
#define TILE_VECS 2
#define PAIRS

#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

/* c += a @ b with a rounded to bf16 here and b as pairs of rows, [k / 2][columns]; k even, sums in float32. */
BF16 static void pair_product_avx512(int64_t rows, int64_t k, const float *a, const uint32_t *b, int64_t columns,
                                     float *c, uint32_t *pairs) {
    const int64_t half = k / 2;
    for (int64_t i = 0; i < rows * k; i += 16) /* rows is a multiple of 8 and k even: whole vectors */
        _mm256_storeu_si256((__m256i *)(pairs + i / 2), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(a + i)));
    for (int64_t at = 0; at < columns; at += 2 * 16)
        for (int64_t row = 0; row < rows; row += 8) {
            float *out = c + row * columns + at;
            __m512 sum[8][2];
            for (int r = 0; r < 8; r++)
                for (int v = 0; v < 2; v++)
                    sum[r][v] = _mm512_loadu_ps(out + r * columns + v * 16);
            for (int64_t i = 0; i < half; i++) {
                const __m512bh low = (__m512bh)_mm512_loadu_si512(b + i * columns + at);
                const __m512bh high = (__m512bh)_mm512_loadu_si512(b + i * columns + at + 16);
                for (int r = 0; r < 8; r++) {
                    const __m512bh x = (__m512bh)_mm512_set1_epi32((int32_t)pairs[(row + r) * half + i]);
                    sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, low);
                    sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, high);
                }
            }
            for (int r = 0; r < 8; r++)
                for (int v = 0; v < 2; v++)
                    _mm512_storeu_ps(out + r * columns + v * 16, sum[r][v]);
        }
}
#include "score_level.h"

int aif_has_bf16(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}
#else
int aif_has_bf16(void) { return 0; }
#endif

/* ---- the driver --------------------------------------------------------------------------------------------------- */

static uint32_t rounded_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even; weights are finite */
}

/* [k][columns] floats -> [k / 2][columns] pairs of rows */
static void pair_rows(const float *matrix, int64_t k, int64_t columns, uint32_t *pairs) {
    for (int64_t i = 0; i < k; i += 2)
        for (int64_t j = 0; j < columns; j++)
            pairs[i / 2 * columns + j] = rounded_bf16(matrix[i * columns + j]) |
                                         rounded_bf16(matrix[(i + 1) * columns + j]) << 16;
}

/* Floats that hold a block of rows, the last ones of the scratch memory. */
static int64_t block_floats(const struct aif_scorer *m) { return BLOCK * (m->row_bytes + 3) / 4; }

/* Floats of scratch memory that one call needs. */
int64_t aif_score_scratch(const struct aif_scorer *m) {
    const int64_t wide = m->width > m->Hp ? m->width : m->Hp;
    return BLOCK * (m->width + m->Hp + m->Fp) + BLOCK * wide / 2 + m->width / 2 * m->Hp + m->Hp / 2 * m->Fp +
           block_floats(m);
}

static struct work work_of(const struct aif_scorer *m, const struct aif_user *u, int bf16, float *scratch) {
    const int64_t wide = m->width > m->Hp ? m->width : m->Hp;
    struct work work = {scratch, NULL, NULL, NULL, NULL, NULL};
    work.hidden = work.x + BLOCK * m->width;
    work.head = work.hidden + BLOCK * m->Hp;
    if (bf16) {
        work.pairs = (uint32_t *)(work.head + BLOCK * m->Fp);
        work.first_pairs = work.pairs + BLOCK * wide / 2;
        work.up_pairs = work.first_pairs + m->width / 2 * m->Hp;
        pair_rows(u->first, m->width, m->Hp, work.first_pairs);
        pair_rows(m->up, m->Hp, m->Fp, work.up_pairs);
    }
    return work;
}

/* Tier features of a block into its columns of x; zeros without content or without history. */
static void tier_columns(int level, const struct aif_scorer *m, const struct aif_user *u, const uint8_t *rows,
                         int64_t n, float *x) {
    for (int64_t group = 0; group < m->groups; group++) {
        float *out = x + m->K + group * m->tiers;
        if (u->n_history[group])
            aif_tiers(level, rows + m->at_sig, m->row_bytes, n, (int)m->sig_bytes, u->history[group],
                      u->n_history[group], m->edges, (int)m->tiers, u->gain[group], out, m->width);
        for (int64_t i = 0; i < n; i++)
            if (!u->n_history[group] || !(rows[i * m->row_bytes + m->at_flags] & HAS_CONTENT))
                memset(out + i * m->width, 0, (size_t)m->tiers * sizeof(float));
    }
}

/* One block of at most BLOCK rows side by side. */
static void score_block(int level, const struct aif_scorer *m, const struct aif_user *u, const uint8_t *block,
                        int64_t some, const struct work *work, float *scores) {
    tier_columns(level, m, u, block, some, work->x);
    switch (level) {
#if defined(__x86_64__) && defined(__GNUC__)
    case 2:
        block_avx512(m, u, block, some, work, scores);
        break;
    case 1:
        block_avx2(m, u, block, some, work, scores);
        break;
#endif
    default:
        block_portable(m, u, block, some, work, scores);
    }
    for (int64_t i = 0; i < some; i++)
        if ((block[i * m->row_bytes + m->at_flags] & (VALID | TOMBSTONE)) != VALID)
            scores[i] = -INFINITY;
}

/* rows [n][row_bytes] -> scores [n], -inf where a row is not valid. level must not exceed aif_level(); bf16 only where
 * aif_has_bf16() and level 2. scratch: aif_score_scratch() floats of the caller's, not shared between threads. */
void aif_score(int level, int bf16, const struct aif_scorer *m, const struct aif_user *u, const uint8_t *rows,
               int64_t n, float *scratch, float *scores) {
    const struct work work = work_of(m, u, bf16, scratch);
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t some = n - first < BLOCK ? n - first : BLOCK;
        score_block(level, m, u, rows + first * m->row_bytes, some, &work, scores + first);
    }
}

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static uint64_t u64_at(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* Join and score without writing the rows down: keys [n] -> slots [n] -> scores [n], a block of rows at a time copied
 * into this thread's scratch. computed [n]: when each row was computed, 0 for an unknown key. Stops after the lookup
 * when a key is unknown and stop_if_unknown, and between two blocks when the deadline is past (scores beyond `done`
 * are -inf). The caller keeps slots in place meanwhile (mirror epochs). */
void aif_score_keys(int level, int bf16, const struct aif_scorer *m, const struct aif_user *u,
                    const struct aif_stored *stored, const uint64_t *keys, int64_t n, float *scratch, int32_t *slots,
                    float *scores, uint64_t *computed, struct aif_joined *joined) {
    const int64_t begin_ns = clock_ns();
    aif_slots_lookup(stored->table, stored->mask, keys, n, slots);
    *joined = (struct aif_joined){0, 0, 0, 0};
    for (int64_t i = 0; i < n; i++)
        joined->unknown += slots[i] < 0;
    joined->join_ns = clock_ns() - begin_ns;
    if (joined->unknown && stored->stop_if_unknown)
        return;
    const struct work work = work_of(m, u, bf16, scratch);
    uint8_t *const block = (uint8_t *)(scratch + aif_score_scratch(m) - block_floats(m));
    while (joined->done < n) {
        const int64_t first = joined->done, some = n - first < BLOCK ? n - first : BLOCK;
        const int64_t now_ns = clock_ns();
        if (now_ns >= stored->due_ns)
            break;
        aif_gather(stored->arena, stored->rows, m->row_bytes, slots + first, some, block);
        for (int64_t i = 0; i < some; i++) {
            const uint8_t *row = block + i * m->row_bytes;
            const uint64_t event_ms = u64_at(row + stored->at_event);
            computed[first + i] = u64_at(row + stored->at_computed);
            joined->newest_ms = event_ms > joined->newest_ms ? event_ms : joined->newest_ms;
        }
        joined->join_ns += clock_ns() - now_ns;
        score_block(level, m, u, block, some, &work, scores + first);
        joined->done += some;
    }
    for (int64_t i = joined->done; i < n; i++) {
        scores[i] = -INFINITY;
        computed[i] = 0;
    }
}
