/* Columns of items_read.c -> what one version's towers read: tokens, sets, numbers. Contract: items.py. */
#if __has_include(<Python.h>) /* else the library is built without these, and they run in Python */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "items.h"

enum { FIELD_LABEL = 0, FIELD_SET = 1, FIELD_NUMBER = 2 };

typedef struct {
    const uint8_t *texts;  /* all words, one behind the other */
    const int64_t *ends;   /* (n + 1) word w is texts[ends[w] : ends[w + 1]] */
    const int64_t *tokens; /* (n) */
    int32_t *slots;        /* (mask + 1) words by hash, -1: free */
    int64_t words, mask;
} vocabulary;

static uint64_t hash(const uint8_t *at, int64_t size) {
    uint64_t h = 0xCBF29CE484222325ULL; /* FNV-1a */
    for (int64_t i = 0; i < size; i++)
        h = (h ^ at[i]) * 0x100000001B3ULL;
    return h ^ (h >> 29);
}

static int64_t find(const vocabulary *v, const uint8_t *at, int64_t size, int64_t otherwise) {
    for (uint64_t place = hash(at, size);; place++) {
        int32_t word = v->slots[place & (uint64_t)v->mask];
        if (word < 0)
            return otherwise;
        int64_t from = v->ends[word];
        if (v->ends[word + 1] - from == size && !memcmp(v->texts + from, at, (size_t)size))
            return v->tokens[word];
    }
}

void aif_vocabulary_build(const vocabulary *v) {
    for (int64_t word = 0; word < v->words; word++) {
        uint64_t place = hash(v->texts + v->ends[word], v->ends[word + 1] - v->ends[word]);
        while (v->slots[place & (uint64_t)v->mask] >= 0)
            place++;
        v->slots[place & (uint64_t)v->mask] = (int32_t)word;
    }
}

typedef struct {
    const vocabulary *names;      /* token: the field */
    const vocabulary *categories; /* token: the place in the version's list */
    const vocabulary *const *words; /* (fields) */
    const int64_t *kinds, *columns, *unknown; /* (fields) */
    int64_t fields, labels, numbers, width;
} plan;

typedef struct {
    int32_t *category;  /* (n) */
    int64_t *labels;    /* (n, labels), filled before with what a missing value means */
    int64_t **sets;     /* by set: flat tokens */
    int64_t **set_ends; /* by set: (n + 1), [0] = 0 */
    double *numbers;    /* (n, numbers), filled before */
    float *content;     /* (n, width), zeros before */
    uint8_t *has_content; /* (n) */
} encoded;

/* 0: something in it asks for the careful encoder (a type that a field does not take, a name that comes twice). */
static int encode_one(const plan *p, const item_column *item, const item_entry *entries, const float *numbers,
                      const uint8_t *base, int64_t i, encoded *out) {
    uint64_t seen = 0;
    for (int64_t e = item->entries_from, end = e + item->entries_count; e < end; e++) {
        const item_entry *entry = &entries[e];
        int64_t count = entry->kind == ENTRY_LIST ? entry->size : 0, first = e + 1;
        e += count;
        int64_t field = find(p->names, base + entry->name_at, entry->name_size, -1);
        if (field < 0)
            continue;
        if (seen >> field & 1)
            return 0;
        seen |= 1ULL << field;
        int64_t column = p->columns[field], unknown = p->unknown[field];
        if (p->kinds[field] == FIELD_NUMBER) {
            if (entry->kind != ENTRY_NUMBER)
                return 0;
            out->numbers[i * p->numbers + column] = entry->number;
        } else if (entry->kind == ENTRY_NUMBER) {
            return 0; /* its text is Python's */
        } else if (p->kinds[field] == FIELD_LABEL) {
            if (entry->kind != ENTRY_TEXT)
                return 0;
            out->labels[i * p->labels + column] = find(p->words[field], base + entry->at, entry->size, unknown);
        } else {
            int64_t *flat = out->sets[column], *at = &out->set_ends[column][i + 1];
            if (entry->kind == ENTRY_TEXT)
                flat[(*at)++] = find(p->words[field], base + entry->at, entry->size, unknown);
            for (int64_t part = first; part < first + count; part++)
                flat[(*at)++] = find(p->words[field], base + entries[part].at, entries[part].size, unknown);
        }
    }
    if (p->width && item->content_count >= 0) {
        if (item->content_count != p->width)
            return 0;
        memcpy(out->content + i * p->width, numbers + item->content_from, (size_t)p->width * sizeof(float));
        out->has_content[i] = 1;
    }
    out->category[i] = (int32_t)find(p->categories, base + item->category_at, item->category_size, -1);
    return 1;
}

/* Items chosen[i] (n) of `columns`, whose values are values[chosen[i]]; done[i] = 0: row i is not to be used. */
void aif_items_encode(const plan *p, PyObject *values, const int64_t *chosen, int64_t n, const item_column *columns,
                      const item_entry *entries, const float *numbers, encoded *out, int64_t sets, uint8_t *done) {
    for (int64_t i = 0; i < n; i++) {
        for (int64_t set = 0; set < sets; set++)
            out->set_ends[set][i + 1] = out->set_ends[set][i];
        const uint8_t *base = (const uint8_t *)PyBytes_AS_STRING(PyList_GET_ITEM(values, chosen[i]));
        done[i] = (uint8_t)encode_one(p, &columns[chosen[i]], entries, numbers, base, i, out);
    }
}
#endif
