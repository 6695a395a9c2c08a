/* What items_read.c writes and items_encode.c reads; the dtypes in items.py are the same. */
#ifndef AIF_ITEMS_H
#define AIF_ITEMS_H
#include <stdint.h>

enum { ENTRY_TEXT = 0, ENTRY_NUMBER = 1, ENTRY_LIST = 2 /* `size` texts follow */ };

typedef struct {
    uint64_t key, offset, event_time_ms;
    int64_t appended_ms;
    int64_t entries_from, entries_count;
    int64_t content_from, content_count; /* count -1: no content vector */
    uint32_t category_at, category_size; /* places are bytes from the beginning of the value */
} item_column;

typedef struct {
    uint32_t name_at, name_size;
    uint32_t at, size;
    double number;
    int64_t kind;
} item_entry;
#endif
