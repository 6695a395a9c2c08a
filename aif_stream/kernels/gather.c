/* Rows of an arena by slot. Contract: gather.py. */
#include <stdint.h>
#include <string.h>

#define AHEAD 8 /* rows prefetched before they are copied */
#define LINE 64

/* A negative slot gives a row of zeros. Returns the number of slots beyond the arena (zeros too). */
int64_t aif_gather(const uint8_t *arena, int64_t n_rows, int64_t row_bytes, const int32_t *slots,
                   int64_t n, uint8_t *out) {
    int64_t beyond = 0;
    for (int64_t i = 0; i < n; i++, out += row_bytes) {
        if (i + AHEAD < n && slots[i + AHEAD] >= 0 && slots[i + AHEAD] < n_rows) {
            const uint8_t *next = arena + (int64_t)slots[i + AHEAD] * row_bytes;
            for (int64_t byte = 0; byte < row_bytes; byte += LINE)
                __builtin_prefetch(next + byte);
        }
        if (slots[i] >= 0 && slots[i] < n_rows) {
            memcpy(out, arena + (int64_t)slots[i] * row_bytes, (size_t)row_bytes);
        } else {
            memset(out, 0, (size_t)row_bytes);
            beyond += slots[i] >= 0;
        }
    }
    return beyond;
}
