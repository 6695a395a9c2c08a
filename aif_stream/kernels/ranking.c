/* Scores -> the best k, and the ages of what was scored. Contract: ranking.py. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

struct ranked {
    int64_t scored, best;      /* finite scores; how many of them are in `order` */
    uint64_t low, high;        /* the two middle stamps of the scored (the same one when their number is odd) */
    uint64_t oldest;
};

struct entry {
    float score;
    uint64_t key;
    int64_t at;
};

/* Best first, equal scores by key. */
static int by_score(const void *left, const void *right) {
    const struct entry *a = left, *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->key < b->key ? -1 : a->key > b->key;
}

/* values[at] becomes what it would be if they were sorted; nothing larger before it, nothing smaller after it (Hoare). */
#define SELECT(name, type)                                                                                            \
    static type name(type *values, int64_t n, int64_t at) {                                                           \
        int64_t low = 0, high = n - 1;                                                                                \
        while (low < high) {                                                                                          \
            const type a = values[low], b = values[low + (high - low) / 2], c = values[high];                         \
            const type pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);                     \
            int64_t i = low, j = high;                                                                                \
            while (i <= j) {                                                                                          \
                while (values[i] < pivot)                                                                             \
                    i++;                                                                                              \
                while (pivot < values[j])                                                                             \
                    j--;                                                                                              \
                if (i <= j) {                                                                                         \
                    const type held = values[i];                                                                      \
                    values[i++] = values[j];                                                                          \
                    values[j--] = held;                                                                               \
                }                                                                                                     \
            }                                                                                                         \
            if (at <= j)                                                                                              \
                high = j;                                                                                             \
            else if (at >= i)                                                                                         \
                low = i;                                                                                              \
            else                                                                                                      \
                break;                                                                                                \
        }                                                                                                             \
        return values[at];                                                                                            \
    }
SELECT(select_score, float)
SELECT(select_stamp, uint64_t)

#define BINS 4096

/* The two middle values and the smallest of stamps [n > 0]. Where a histogram over their range tells in which bin the
 * middle lies only that bin is looked at: stamps are spread over seconds to months. `held` [n]. */
static void ages(const uint64_t *stamps, int64_t n, uint64_t *held, struct ranked *out) {
    uint64_t least = stamps[0], most = stamps[0];
    for (int64_t i = 1; i < n; i++) {
        least = stamps[i] < least ? stamps[i] : least;
        most = stamps[i] > most ? stamps[i] : most;
    }
    int shift = 0;
    while ((most - least) >> shift >= BINS)
        shift++;
    int32_t count[BINS] = {0};
    for (int64_t i = 0; i < n; i++)
        count[(stamps[i] - least) >> shift]++;
    int64_t before = 0, bin = 0;
    while (before + count[bin] <= n / 2)
        before += count[bin++];
    int64_t members = 0;
    uint64_t below = least; /* the largest that comes before the members */
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = (int64_t)((stamps[i] - least) >> shift);
        if (at == bin)
            held[members++] = stamps[i];
        else if (at < bin && stamps[i] > below)
            below = stamps[i];
    }
    const int64_t middle = n / 2 - before;
    out->oldest = least;
    out->high = out->low = select_stamp(held, members, middle);
    if (n % 2 == 0) {
        if (middle > 0) { /* all that is smaller lies before it */
            below = held[0];
            for (int64_t i = 1; i < middle; i++)
                below = held[i] > below ? held[i] : below;
        }
        out->low = below;
    }
}

/* A value that at least `best` of finite scores [n] reach, and not many more unless they crowd in one bin. */
static float reached_by(const float *scores, int64_t n, int64_t best) {
    float least = scores[0], most = scores[0];
    for (int64_t i = 1; i < n; i++) {
        least = scores[i] < least ? scores[i] : least;
        most = scores[i] > most ? scores[i] : most;
    }
    const float scale = (BINS - 1) / (most - least);
    if (!(scale > 0) || !isfinite(scale)) /* all the same, or further apart than a float can say */
        return least;
    int32_t count[BINS] = {0};
    for (int64_t i = 0; i < n; i++)
        count[(int)((scores[i] - least) * scale)]++;
    int64_t above = 0;
    int bin = BINS - 1;
    while (above + count[bin] < best)
        above += count[bin--];
    float cut = most; /* the smallest of that bin: rounding cannot lose it */
    for (int64_t i = 0; i < n; i++)
        if ((int)((scores[i] - least) * scale) == bin && scores[i] < cut)
            cut = scores[i];
    return cut;
}

/* scores, keys, stamps [n] -> order [min(k, scored)]: places of the best, best first; k > 0. scratch: 16 n bytes.
 * Returns 0, or -1 when there is no memory. */
int64_t aif_rank(const float *scores, const uint64_t *keys, const uint64_t *stamps, int64_t n, int64_t k, void *scratch,
                 int64_t *order, struct ranked *out) {
    uint64_t *const scored_at = scratch;
    float *const finite = (float *)(scored_at + n);
    int64_t scored = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(scores[i])) {
            finite[scored] = scores[i];
            scored_at[scored++] = stamps[i];
        }
    *out = (struct ranked){scored, 0, 0, 0, 0};
    if (!scored)
        return 0;
    const int64_t best = k < scored ? k : scored;
    float cut = reached_by(finite, scored, best);
    int64_t reach = 0;
    for (int64_t i = 0; i < scored; i++)
        reach += finite[i] >= cut;
    if (reach > 4 * best) { /* crowded: the exact last place, and every equal of it: ties go by key */
        cut = select_score(finite, scored, scored - best);
        reach = 0;
        for (int64_t i = 0; i < scored; i++)
            reach += finite[i] >= cut;
    }
    struct entry *entries = malloc((size_t)reach * sizeof *entries);
    if (!entries)
        return -1;
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(scores[i]) && scores[i] >= cut)
            entries[found++] = (struct entry){scores[i], keys[i], i};
    qsort(entries, (size_t)reach, sizeof *entries, by_score);
    for (int64_t i = 0; i < best; i++)
        order[i] = entries[i].at;
    free(entries);
    ages(scored_at, scored, (uint64_t *)finite, out);
    out->best = best;
    return 0;
}
