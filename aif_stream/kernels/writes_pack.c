/* A micro-batch -> one Redis command per bucket. Contract: writes.py of the index; layout: index/item_codec.py. */
#if __has_include(<Python.h>) /* else the library is built without these, and they run in Python */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define ENTRY_BYTES 31 /* key u64, size u32, time u64, offset u64, flags u8, id size u16 */
#define VALUE_HEAD 19  /* of them those that the size counts */
#define REMOVED 1

typedef struct {
    const uint64_t *keys, *times, *offsets; /* (n) */
    PyObject *payloads;                     /* list (n) of bytes, None: removed */
    PyObject *names;                        /* list (n) of bytes, empty for a key that spells its id; or None */
    uint64_t now_ms;
    int64_t versions;
    PyObject *labels;           /* list (versions) of bytes: the version's name as a bulk string */
    const uint8_t *const *rows; /* (versions) */
    const int64_t *row_bytes;   /* (versions) */
} batch;

static char *put(char *at, const void *from, size_t size) {
    memcpy(at, from, size);
    return at + size;
}

static PyObject *name_of(const batch *b, int64_t i) {
    return b->names == Py_None ? NULL : PyList_GET_ITEM(b->names, i);
}

static int64_t value_bytes(const batch *b, int64_t i) {
    PyObject *payload = PyList_GET_ITEM(b->payloads, i), *name = name_of(b, i);
    return VALUE_HEAD + (name ? PyBytes_GET_SIZE(name) : 0) + (payload == Py_None ? 8 : PyBytes_GET_SIZE(payload));
}

static char *put_entry(char *at, const batch *b, int64_t i) {
    PyObject *payload = PyList_GET_ITEM(b->payloads, i), *name = name_of(b, i);
    uint32_t size = (uint32_t)value_bytes(b, i);
    uint16_t name_bytes = name ? (uint16_t)PyBytes_GET_SIZE(name) : 0;
    at = put(at, &b->keys[i], 8);
    at = put(at, &size, 4);
    at = put(at, &b->times[i], 8);
    at = put(at, &b->offsets[i], 8);
    *at++ = payload == Py_None ? REMOVED : 0;
    at = put(at, &name_bytes, 2);
    if (name)
        at = put(at, PyBytes_AS_STRING(name), name_bytes);
    if (payload == Py_None)
        return put(at, &b->now_ms, 8);
    return put(at, PyBytes_AS_STRING(payload), (size_t)PyBytes_GET_SIZE(payload));
}

static PyObject *command(const batch *b, PyObject *head, const int64_t *order, int64_t n) {
    int64_t items = 0;
    for (int64_t j = 0; j < n; j++)
        items += 12 + value_bytes(b, order[j]);
    char length[32];
    int length_bytes = snprintf(length, sizeof length, "$%lld\r\n", (long long)items);
    int64_t total = PyBytes_GET_SIZE(head) + length_bytes + items + 2;
    for (int64_t v = 0; v < b->versions; v++) {
        char counted[32];
        total += PyBytes_GET_SIZE(PyList_GET_ITEM(b->labels, v)) + n * b->row_bytes[v] + 2;
        total += snprintf(counted, sizeof counted, "$%lld\r\n", (long long)(n * b->row_bytes[v]));
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, total);
    if (!made)
        return NULL;
    char *at = put(PyBytes_AS_STRING(made), PyBytes_AS_STRING(head), (size_t)PyBytes_GET_SIZE(head));
    at = put(at, length, (size_t)length_bytes);
    for (int64_t j = 0; j < n; j++)
        at = put_entry(at, b, order[j]);
    at = put(at, "\r\n", 2);
    for (int64_t v = 0; v < b->versions; v++) {
        PyObject *label = PyList_GET_ITEM(b->labels, v);
        size_t bytes = (size_t)b->row_bytes[v];
        at = put(at, PyBytes_AS_STRING(label), (size_t)PyBytes_GET_SIZE(label));
        at += sprintf(at, "$%lld\r\n", (long long)(n * b->row_bytes[v]));
        for (int64_t j = 0; j < n; j++)
            at = put(at, b->rows[v] + (size_t)order[j] * bytes, bytes);
        at = put(at, "\r\n", 2);
    }
    return made;
}

/* heads: list (buckets) of bytes; bucket j has the items order[starts[j] : ends[j]]. A list (buckets) of commands. */
PyObject *aif_writes_pack(const batch *b, PyObject *heads, const int64_t *order, const int64_t *starts,
                          const int64_t *ends) {
    Py_ssize_t buckets = PyList_GET_SIZE(heads);
    PyObject *commands = PyList_New(buckets);
    for (Py_ssize_t j = 0; commands && j < buckets; j++) {
        PyObject *made = command(b, PyList_GET_ITEM(heads, j), order + starts[j], ends[j] - starts[j]);
        if (!made) {
            Py_DECREF(commands);
            return NULL;
        }
        PyList_SET_ITEM(commands, j, made);
    }
    return commands;
}
#endif
