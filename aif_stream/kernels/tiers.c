/* SimTier histogram: for each item, how much of a history lies in each tier of similarity.
 * Contract: tiers.py.
 *
 * Items lie in the lanes (64 at a time), the history runs: no sum across lanes is ever needed.
 * Stage 1 writes the Hamming distances of 64 items x ROWS history entries as bytes (they stay in
 * L1); stage 2 counts, for each tier's threshold, how many of them lie at or below it, in byte
 * counters. Tiers grow with similarity, so a tier's count is the difference of two of these.
 * The stages exist three times (portable, AVX2, AVX-512); all give the same integers. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 64
#define ROWS 192 /* 192 x 64 bytes = 12 KiB of L1; at most 255, the byte counters' range */
#define GROUP 4  /* thresholds counted in one pass over the distances */
#define MAX_TIERS 64
#define MAX_WORDS 4 /* 256 bits */
#define ABI 6

/* One block's items as a level likes them; its size serves both layouts. */
typedef uint8_t block_t[MAX_WORDS * 8 * 2 * LANES];

struct level {
    /* n <= LANES signatures of `bytes` bytes, `stride` apart; missing lanes are zeros */
    void (*pack)(const uint8_t *items, int64_t stride, int n, int bytes, uint8_t *block);
    /* distance[row][lane] = min(255, Hamming distance); the history is [rows][words] */
    void (*distances)(const uint8_t *restrict block, const uint64_t *restrict history, int rows,
                      int bytes, uint8_t *restrict distance);
    /* counts[g][lane] += rows with distance <= at_most[g] */
    void (*count)(const uint8_t *distance, int rows, const uint8_t *at_most,
                  int32_t (*counts)[LANES]);
};

static inline int words_of(int bytes) { return (bytes + 7) / 8; }

/* ---- portable ------------------------------------------------------------------------------- */

/* [word][place of the lane] */
static inline void pack_at(const uint8_t *items, int64_t stride, int n, int bytes, uint8_t *block,
                           int transposed) {
    memset(block, 0, (size_t)words_of(bytes) * 8 * LANES);
    for (int lane = 0; lane < n; lane++) {
        int place = transposed ? (lane % 8) * 8 + lane / 8 : lane;
        for (int from = 0, word = 0; from < bytes; from += 8, word++) {
            size_t size = bytes - from < 8 ? (size_t)(bytes - from) : 8;
            memcpy(block + ((size_t)word * LANES + (size_t)place) * 8, items + lane * stride + from,
                   size);
        }
    }
}

static void pack_words(const uint8_t *items, int64_t stride, int n, int bytes, uint8_t *block) {
    pack_at(items, stride, n, bytes, block, 0);
}

/* Bits per byte of a word, as eight bytes. */
static inline uint64_t byte_bits(uint64_t x) {
    x -= (x >> 1) & UINT64_C(0x5555555555555555);
    x = (x & UINT64_C(0x3333333333333333)) + ((x >> 2) & UINT64_C(0x3333333333333333));
    return (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
}

static void distances_portable(const uint8_t *restrict block, const uint64_t *restrict history,
                               int rows, int bytes, uint8_t *restrict distance) {
    const uint64_t *items = (const uint64_t *)block;
    const int words = words_of(bytes);
    for (int row = 0; row < rows; row++, history += words, distance += LANES) {
        uint64_t bits[LANES];
        for (int i = 0; i < LANES; i++)
            bits[i] = byte_bits(items[i] ^ history[0]);
        for (int word = 1; word < words; word++)
            for (int i = 0; i < LANES; i++)
                bits[i] += byte_bits(items[word * LANES + i] ^ history[word]);
        for (int i = 0; i < LANES; i++) { /* sum of the eight bytes: up to 256, so in 16 bits */
            uint64_t x = bits[i];
            x = (x & UINT64_C(0x00ff00ff00ff00ff)) + ((x >> 8) & UINT64_C(0x00ff00ff00ff00ff));
            x += x >> 32;
            x = (x + (x >> 16)) & 0xffff;
            bits[i] = x > 255 ? 255 : x;
        }
        for (int i = 0; i < LANES; i++)
            distance[i] = (uint8_t)bits[i];
    }
}

/* Vectors of GCC and clang: SSE2, NEON or plain code, as the machine has it. */
typedef uint8_t bytes16 __attribute__((vector_size(16)));

static void count_portable(const uint8_t *distance, int rows, const uint8_t *at_most,
                           int32_t (*counts)[LANES]) {
    for (int strip = 0; strip < LANES; strip += 16) {
        bytes16 limit[GROUP], found[GROUP] = {{0}}, d;
        for (int g = 0; g < GROUP; g++)
            memset(&limit[g], at_most[g], 16);
        for (int row = 0; row < rows; row++) {
            memcpy(&d, distance + row * LANES + strip, 16);
            for (int g = 0; g < GROUP; g++)
                found[g] -= (bytes16)(d <= limit[g]); /* true is -1 */
        }
        for (int g = 0; g < GROUP; g++)
            for (int i = 0; i < 16; i++)
                counts[g][strip + i] += found[g][i];
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* ---- AVX2 ----------------------------------------------------------------------------------- */
#define AVX2 __attribute__((target("avx2")))

/* Nibble k of every lane in one row of 64 bytes: [2 * bytes][64]. */
static void pack_nibbles(const uint8_t *items, int64_t stride, int n, int bytes, uint8_t *block) {
    memset(block, 0, (size_t)bytes * 2 * LANES);
    for (int lane = 0; lane < n; lane++)
        for (int byte = 0; byte < bytes; byte++) {
            uint8_t value = items[lane * stride + byte];
            block[(2 * byte) * LANES + lane] = value & 15;
            block[(2 * byte + 1) * LANES + lane] = value >> 4;
        }
}

/* DIFFERING[h][x]: bits of x ^ h. The history's nibble chooses the table, the items' nibbles
 * index it (pshufb): two operations for 32 nibbles, and the saturating sum is min(255, .). */
static const uint8_t DIFFERING[16][16] __attribute__((aligned(16))) = {
    {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4}, {1, 0, 2, 1, 2, 1, 3, 2, 2, 1, 3, 2, 3, 2, 4, 3},
    {1, 2, 0, 1, 2, 3, 1, 2, 2, 3, 1, 2, 3, 4, 2, 3}, {2, 1, 1, 0, 3, 2, 2, 1, 3, 2, 2, 1, 4, 3, 3, 2},
    {1, 2, 2, 3, 0, 1, 1, 2, 2, 3, 3, 4, 1, 2, 2, 3}, {2, 1, 3, 2, 1, 0, 2, 1, 3, 2, 4, 3, 2, 1, 3, 2},
    {2, 3, 1, 2, 1, 2, 0, 1, 3, 4, 2, 3, 2, 3, 1, 2}, {3, 2, 2, 1, 2, 1, 1, 0, 4, 3, 3, 2, 3, 2, 2, 1},
    {1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3}, {2, 1, 3, 2, 3, 2, 4, 3, 1, 0, 2, 1, 2, 1, 3, 2},
    {2, 3, 1, 2, 3, 4, 2, 3, 1, 2, 0, 1, 2, 3, 1, 2}, {3, 2, 2, 1, 4, 3, 3, 2, 2, 1, 1, 0, 3, 2, 2, 1},
    {2, 3, 3, 4, 1, 2, 2, 3, 1, 2, 2, 3, 0, 1, 1, 2}, {3, 2, 4, 3, 2, 1, 3, 2, 2, 1, 3, 2, 1, 0, 2, 1},
    {3, 4, 2, 3, 2, 3, 1, 2, 2, 3, 1, 2, 1, 2, 0, 1}, {4, 3, 3, 2, 3, 2, 2, 1, 3, 2, 2, 1, 2, 1, 1, 0}};

AVX2 static inline __m256i differing(const __m256i table, const uint8_t *nibbles) {
    return _mm256_shuffle_epi8(table, _mm256_loadu_si256((const __m256i *)nibbles));
}

AVX2 static void distances_avx2(const uint8_t *restrict block, const uint64_t *restrict history,
                                int rows, int bytes, uint8_t *restrict distance) {
    const int words = words_of(bytes);
    for (int row = 0; row < rows; row++, history += words, distance += LANES) {
        const uint8_t *seen = (const uint8_t *)history;
        __m256i low = _mm256_setzero_si256(), high = low;
        for (int nibble = 0; nibble < 2 * bytes; nibble++) {
            const int h = nibble % 2 ? seen[nibble / 2] >> 4 : seen[nibble / 2] & 15;
            const __m256i table =
                _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)DIFFERING[h]));
            low = _mm256_adds_epu8(low, differing(table, block + nibble * LANES));
            high = _mm256_adds_epu8(high, differing(table, block + nibble * LANES + 32));
        }
        _mm256_storeu_si256((__m256i *)distance, low);
        _mm256_storeu_si256((__m256i *)(distance + 32), high);
    }
}

AVX2 static void count_avx2(const uint8_t *distance, int rows, const uint8_t *at_most,
                            int32_t (*counts)[LANES]) {
    for (int half = 0; half < LANES; half += 32) {
        __m256i limit[GROUP], found[GROUP];
        uint8_t bytes[32];
        for (int g = 0; g < GROUP; g++) {
            limit[g] = _mm256_set1_epi8((char)at_most[g]);
            found[g] = _mm256_setzero_si256();
        }
        for (int row = 0; row < rows; row++) {
            __m256i d = _mm256_loadu_si256((const __m256i *)(distance + row * LANES + half));
            for (int g = 0; g < GROUP; g++)
                found[g] = _mm256_sub_epi8(found[g],
                                           _mm256_cmpeq_epi8(_mm256_min_epu8(d, limit[g]), d));
        }
        for (int g = 0; g < GROUP; g++) {
            _mm256_storeu_si256((__m256i *)bytes, found[g]);
            for (int i = 0; i < 32; i++)
                counts[g][half + i] += bytes[i];
        }
    }
}

/* ---- AVX-512 with VPOPCNTDQ ------------------------------------------------------------------ */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vpopcntdq")))
#define INLINE inline __attribute__((always_inline))

/* 8 x 8 transposed: eight vectors of eight 64-bit distances then shift together into one vector of
 * 64 bytes in lane order. */
static void pack_transposed(const uint8_t *items, int64_t stride, int n, int bytes,
                            uint8_t *block) {
    pack_at(items, stride, n, bytes, block, 1);
}

AVX512 static INLINE void distances_words(const uint8_t *restrict block,
                                          const uint64_t *restrict history, int rows,
                                          const int words, uint8_t *restrict distance) {
    for (int row = 0; row < rows; row++, history += words, distance += LANES) {
        __m512i packed = _mm512_setzero_si512();
        for (int byte = 0; byte < 8; byte++) {
            __m512i bits = _mm512_setzero_si512();
            for (int word = 0; word < words; word++) {
                const uint8_t *items = block + word * 8 * LANES + byte * 64;
                __m512i x = _mm512_xor_si512(_mm512_loadu_si512(items),
                                             _mm512_set1_epi64((long long)history[word]));
                bits = _mm512_add_epi64(bits, _mm512_popcnt_epi64(x));
            }
            if (words == MAX_WORDS)
                bits = _mm512_min_epu64(bits, _mm512_set1_epi64(255));
            packed = _mm512_or_si512(packed, _mm512_slli_epi64(bits, (unsigned)(8 * byte)));
        }
        _mm512_storeu_si512(distance, packed);
    }
}

AVX512 static void distances_avx512(const uint8_t *restrict block, const uint64_t *restrict history,
                                    int rows, int bytes, uint8_t *restrict distance) {
    switch (words_of(bytes)) { /* a constant word count unrolls; one word stays in registers */
    case 1:
        distances_words(block, history, rows, 1, distance);
        break;
    case 2:
        distances_words(block, history, rows, 2, distance);
        break;
    case 3:
        distances_words(block, history, rows, 3, distance);
        break;
    default:
        distances_words(block, history, rows, 4, distance);
    }
}

AVX512 static void count_avx512(const uint8_t *distance, int rows, const uint8_t *at_most,
                                int32_t (*counts)[LANES]) {
    const __m512i minus_one = _mm512_set1_epi8(-1);
    __m512i limit[GROUP], found[GROUP];
    uint8_t bytes[LANES];
    for (int g = 0; g < GROUP; g++) {
        limit[g] = _mm512_set1_epi8((char)at_most[g]);
        found[g] = _mm512_setzero_si512();
    }
    for (int row = 0; row < rows; row++) {
        __m512i d = _mm512_loadu_si512(distance + row * LANES);
        for (int g = 0; g < GROUP; g++)
            found[g] = _mm512_mask_sub_epi8(found[g], _mm512_cmple_epu8_mask(d, limit[g]), found[g],
                                            minus_one);
    }
    for (int g = 0; g < GROUP; g++) {
        _mm512_storeu_si512(bytes, found[g]);
        for (int i = 0; i < LANES; i++)
            counts[g][i] += bytes[i];
    }
}

static const struct level LEVELS[] = {{pack_words, distances_portable, count_portable},
                                      {pack_nibbles, distances_avx2, count_avx2},
                                      {pack_transposed, distances_avx512, count_avx512}};

int aif_level(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq"))
        return 2; /* FMA and F16C come with AVX-512F */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
#else
static const struct level LEVELS[] = {{pack_words, distances_portable, count_portable}};

int aif_level(void) { return 0; }
#endif

/* Raised with every change of a signature, so that a library built from older sources is seen. */
int aif_abi(void) { return ABI; }

/* ---- the driver ------------------------------------------------------------------------------ */

/* Tier t and above = distance <= at_most[t]. The three special kinds come first and last, because
 * edges do not decrease: [1, all) everything; [all, counted) all but exact complements (distance
 * 256, which a byte cannot tell from 255); [counted, none) by threshold; [none, tiers) nothing. */
struct plan {
    int all, counted, none;
    uint8_t at_most[MAX_TIERS + GROUP];
};

static struct plan plan_of(const uint8_t *edges, int bits, int tiers) {
    struct plan plan = {1, 1, 1, {0}};
    for (int tier = 1, equal = 0; tier < tiers; tier++) {
        while (equal <= bits && edges[equal] < tier)
            equal++;
        if (equal == 0)
            plan.all = tier + 1;
        if (bits - equal >= 255)
            plan.counted = tier + 1;
        if (equal <= bits)
            plan.none = tier + 1;
        plan.at_most[tier] = equal > 0 && bits - equal < 255 && equal <= bits
                                 ? (uint8_t)(bits - equal)
                                 : 0;
    }
    if (plan.counted < plan.all)
        plan.counted = plan.all;
    return plan;
}

/* Only for a bound between 0 and 1 of 256 equal bits, which nobody sets: plain and slow. */
static int32_t complements(const uint8_t *item, const uint64_t *history, int n) {
    int32_t found = 0;
    uint64_t flipped[MAX_WORDS];
    memcpy(flipped, item, sizeof flipped);
    for (int word = 0; word < MAX_WORDS; word++)
        flipped[word] = ~flipped[word];
    for (int row = 0; row < n; row++)
        found += memcmp(flipped, history + (size_t)row * MAX_WORDS, sizeof flipped) == 0;
    return found;
}

static void shares(int32_t (*counts)[LANES], int tiers, int lanes, int n_history, const float *gain,
                   float *out, int64_t out_stride) {
    float share[MAX_TIERS][LANES];
    for (int tier = 0; tier < tiers; tier++)
        for (int lane = 0; lane < LANES; lane++) {
            const int32_t count = counts[tier][lane] - counts[tier + 1][lane];
            share[tier][lane] = gain ? gain[count] : (float)count / (float)n_history;
        }
    for (int lane = 0; lane < lanes; lane++)
        for (int tier = 0; tier < tiers; tier++)
            out[lane * out_stride + tier] = share[tier][lane];
}

static void fill(int32_t (*counts)[LANES], int from, int to, int32_t value) {
    for (int tier = from; tier < to; tier++)
        for (int lane = 0; lane < LANES; lane++)
            counts[tier][lane] = value;
}

/* items: n_items signatures, item_stride bytes apart; history: [n_history][words], zero-padded.
 * gain: NULL for shares, or [n_history + 1] what is written for each count in their place.
 * Strides of out in floats. level must not exceed aif_level(). n_history > 0. */
void aif_tiers(int level, const uint8_t *items, int64_t item_stride, int64_t n_items, int bytes,
               const uint64_t *history, int64_t n_history, const uint8_t *edges, int tiers,
               const float *gain, float *out, int64_t out_stride) {
    const struct level *use = &LEVELS[level];
    const struct plan plan = plan_of(edges, bytes * 8, tiers);
    const int n = (int)n_history, words = words_of(bytes);
    block_t block __attribute__((aligned(64)));
    uint8_t distance[ROWS * LANES] __attribute__((aligned(64)));
    int32_t counts[MAX_TIERS + GROUP][LANES] __attribute__((aligned(64)));

    for (int64_t first = 0; first < n_items; first += LANES) {
        const int lanes = n_items - first < LANES ? (int)(n_items - first) : LANES;
        const uint8_t *item = items + first * item_stride;
        memset(counts, 0, sizeof counts);
        use->pack(item, item_stride, lanes, bytes, block);
        for (int row = 0; row < n; row += ROWS) {
            const int rows = n - row < ROWS ? n - row : ROWS;
            use->distances(block, history + (size_t)row * (size_t)words, rows, bytes, distance);
            for (int tier = plan.counted; tier < plan.none; tier += GROUP)
                use->count(distance, rows, plan.at_most + tier, counts + tier);
        }
        fill(counts, 0, plan.counted, n);
        for (int tier = plan.all; tier < plan.counted; tier++)
            for (int lane = 0; lane < lanes; lane++)
                counts[tier][lane] = n - complements(item + lane * item_stride, history, n);
        fill(counts, plan.none, tiers + 1, 0);
        shares(counts, tiers, lanes, n, gain, out + first * out_stride, out_stride);
    }
}
