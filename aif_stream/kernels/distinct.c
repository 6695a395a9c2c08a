/* First occurrences of keys, in order. Contract: distinct.py.
 *
 * An open-addressing set that is used again and again: an entry counts only when its stamp is today's, so nothing has
 * to be cleared between two requests (clearing a table for 10,000 keys costs more than filling it). */
#include <stdint.h>

#define AHEAD 16

struct seen {
    uint64_t key;
    uint64_t stamp;
};

/* The same mix as slots.c. */
static inline uint64_t mix(uint64_t key) {
    key = (key ^ (key >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return key ^ (key >> 32);
}

/* Takes keys [n] in order until `room` unseen ones are in out, none of them `but` if that is there; how many that were.
 * *consumed: keys looked at. The table has more than `room` places free. */
int64_t aif_distinct(struct seen *table, uint64_t mask, uint64_t stamp, const uint64_t *keys, int64_t n, int64_t room,
                     int has_but, uint64_t but, uint64_t *out, int64_t *consumed) {
    int64_t taken = 0, i = 0;
    for (; i < n && taken < room; i++) {
        if (i + AHEAD < n)
            __builtin_prefetch(table + (mix(keys[i + AHEAD]) & mask), 1);
        uint64_t at = mix(keys[i]) & mask;
        while (table[at].stamp == stamp && table[at].key != keys[i])
            at = (at + 1) & mask;
        if (table[at].stamp == stamp || (has_but && keys[i] == but))
            continue;
        table[at] = (struct seen){keys[i], stamp};
        out[taken++] = keys[i];
    }
    *consumed = i;
    return taken;
}
