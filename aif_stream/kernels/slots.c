/* key -> slot, an open-addressing table (linear probing). Contract: slots.py.
 *
 * One writer, many readers, no lock. It is safe because an entry's key never changes once its
 * slot has left EMPTY: the writer stores the key, then the slot (release); a reader loads the
 * slot (acquire), then the key. A removed entry keeps its key (GONE), so probe chains never
 * break, and only the same key may use it again: a reader that holds an old slot can never pair
 * it with another key. The dead wood goes when the table is rebuilt, into a new array.
 * Key and slot lie side by side: a probe touches one cache line. Every 64-bit key is legal. */
#include <stddef.h>
#include <stdint.h>

#define EMPTY (-1)
#define GONE (-2)
#define AHEAD 24 /* entries prefetched before they are probed: hides a cache miss of ~80 ns */

struct entry {
    uint64_t key;
    int32_t slot;
    int32_t unused;
};

struct counts {
    int64_t used; /* entries that are not EMPTY */
    int64_t live; /* entries with a slot */
};

/* The same mix as _mix_numpy: sequential ids must not cluster. */
static inline uint64_t mix(uint64_t key) {
    key = (key ^ (key >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return key ^ (key >> 32);
}

static inline int32_t slot_of(const struct entry *e) {
    return __atomic_load_n(&e->slot, __ATOMIC_ACQUIRE);
}

static inline uint64_t key_of(const struct entry *e) {
    return __atomic_load_n(&e->key, __ATOMIC_RELAXED);
}

/* The key's entry, or the EMPTY one where it would go. */
static inline struct entry *find(struct entry *table, uint64_t mask, uint64_t key, int32_t *slot) {
    for (uint64_t at = mix(key);; at++) {
        struct entry *e = table + (at & mask);
        *slot = slot_of(e);
        if (*slot == EMPTY || key_of(e) == key)
            return e;
    }
}

static inline void prefetch(const struct entry *table, uint64_t mask, const uint64_t *keys,
                            int64_t i, int64_t n) {
    if (i + AHEAD < n)
        __builtin_prefetch(table + (mix(keys[i + AHEAD]) & mask));
}

void aif_slots_lookup(const void *entries, uint64_t mask, const uint64_t *keys, int64_t n,
                      int32_t *slots) {
    struct entry *table = (struct entry *)entries;
    for (int64_t i = 0; i < n; i++) {
        int32_t slot;
        prefetch(table, mask, keys, i, n);
        find(table, mask, keys[i], &slot);
        slots[i] = slot < 0 ? EMPTY : slot;
    }
}

/* Stops before the first new key that would exceed max_used; returns how many keys are done. */
int64_t aif_slots_assign(struct entry *table, uint64_t mask, int64_t max_used, const uint64_t *keys,
                         const int32_t *slots, int64_t n, int32_t *previous, struct counts *counts) {
    for (int64_t i = 0; i < n; i++) {
        int32_t slot;
        prefetch(table, mask, keys, i, n);
        struct entry *e = find(table, mask, keys[i], &slot);
        if (slot == EMPTY) {
            if (counts->used >= max_used)
                return i;
            __atomic_store_n(&e->key, keys[i], __ATOMIC_RELAXED);
            counts->used++;
        }
        counts->live += slot < 0;
        previous[i] = slot < 0 ? EMPTY : slot;
        __atomic_store_n(&e->slot, slots[i], __ATOMIC_RELEASE);
    }
    return n;
}

void aif_slots_remove(struct entry *table, uint64_t mask, const uint64_t *keys, int64_t n,
                      int32_t *previous, struct counts *counts) {
    for (int64_t i = 0; i < n; i++) {
        int32_t slot;
        struct entry *e = find(table, mask, keys[i], &slot);
        previous[i] = slot < 0 ? EMPTY : slot;
        if (slot >= 0) {
            __atomic_store_n(&e->slot, GONE, __ATOMIC_RELEASE);
            counts->live--;
        }
    }
}

/* Copies the live entries into an empty table that no reader has seen yet. */
void aif_slots_rebuild(const struct entry *from, uint64_t from_mask, struct entry *to,
                       uint64_t to_mask) {
    for (uint64_t i = 0; i <= from_mask; i++) {
        int32_t slot;
        if (from[i].slot < 0)
            continue;
        struct entry *e = find(to, to_mask, from[i].key, &slot);
        e->key = from[i].key;
        e->slot = from[i].slot;
    }
}
