/* What the Python side hands over; the same fields in the same order as in score.py. */
#ifndef AIF_SCORE_H
#define AIF_SCORE_H
#include <stdint.h>

#define BLOCK 64 /* rows at a time: 64 x (48 + 64 + 32) floats are 36 KiB, as much as L1 holds */
#define MAX_GROUPS 8

/* One version. H hidden, Hp and Fp: hidden and head rounded up to PAD floats (zeros beyond). */
struct aif_scorer {
    int64_t row_bytes, at_h, at_t, at_w, at_sig, at_category, at_flags, at_key2, at_code; /* -1: no such field */
    int64_t H, Hp, Fp, D, K; /* K: 0 without bridges */
    int64_t at_x_t, width;   /* x is w, tiers, t (from at_x_t on), and a zero where that makes width even */
    int64_t sig_bytes, tiers, groups;
    int64_t categories, keys2, codes; /* values that a row may have: 0 .. n - 1 */
    float eps, down_bias;
    const float *real;        /* [Hp] 1 where there is a hidden unit */
    const float *norm, *bias; /* [Hp] layer norm */
    const float *up;          /* [Hp][Fp] */
    const float *up_bias;     /* [Fp] */
    const float *down;        /* [Fp] */
    const uint8_t *edges;     /* [sig bits + 1] */
};

struct aif_user {
    const float *u;              /* [D] */
    const float *first;          /* [width][Hp] */
    const float *bag;            /* [bag rows][Hp] */
    const int32_t *category_row; /* [categories + 1], first: none */
    const int32_t *key2_row;     /* [keys2 + 1], NULL without a second key */
    int64_t code_row;            /* -1 without codes */
    int64_t nibble_row;          /* [sig_bytes * 2][16] rows from here; -1 without the linear term */
    const uint64_t *history[MAX_GROUPS]; /* [n_history][words] of each group */
    const float *gain[MAX_GROUPS];       /* [n_history + 1] */
    int64_t n_history[MAX_GROUPS];
};

/* Where rows lie: a slot table and its arena (slots.c, gather.c), and where two stamps stand in a row. */
struct aif_stored {
    const void *table;
    uint64_t mask;
    const uint8_t *arena;
    int64_t rows; /* of the arena */
    int64_t at_event, at_computed;
    int64_t due_ns; /* CLOCK_MONOTONIC */
    int64_t stop_if_unknown;
};

struct aif_joined {
    int64_t done;    /* rows that were scored */
    int64_t unknown; /* keys without a slot */
    int64_t join_ns; /* of the call: lookup and copies */
    uint64_t newest_ms;
};

int64_t aif_gather(const uint8_t *arena, int64_t n_rows, int64_t row_bytes, const int32_t *slots, int64_t n,
                   uint8_t *out);
void aif_slots_lookup(const void *table, uint64_t mask, const uint64_t *keys, int64_t n, int32_t *slots);
void aif_tiers(int level, const uint8_t *items, int64_t item_stride, int64_t n_items, int bytes,
               const uint64_t *history, int64_t n_history, const uint8_t *edges, int tiers,
               const float *gain, float *out, int64_t out_stride);
#endif
