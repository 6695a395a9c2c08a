/* What follows the head of a request log's record. Contract: request_body.py; the form: domain/request_log.py. */
#if __has_include(<Python.h>) /* else the library is built without these, and they run in Python */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define HASHED_BIT (UINT64_C(1) << 63)

static void put_numbers(uint8_t *to, const uint64_t *keys, int64_t n, int width) {
    switch (width) { /* the copy's size is a constant in each, so these are plain stores */
    case 2:
        for (int64_t i = 0; i < n; i++)
            memcpy(to + 2 * i, &keys[i], 2);
        break;
    case 4:
        for (int64_t i = 0; i < n; i++)
            memcpy(to + 4 * i, &keys[i], 4);
        break;
    default:
        memcpy(to, keys, 8 * (size_t)n);
    }
}

/* Low halves from `to`, third bytes from `third`. */
static void put_three(uint8_t *to, uint8_t *third, const uint64_t *keys, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + 2 * i, &keys[i], 2);
        third[i] = (uint8_t)(keys[i] >> 16);
    }
}

/* Answered items behind the candidates: keys (k), scores f32 (k). 0: something in the lists is no such number. */
static int put_items(uint8_t *to, PyObject *best, PyObject *scores, int width, uint64_t limit) {
    Py_ssize_t k = PyList_GET_SIZE(best);
    for (Py_ssize_t i = 0; i < k; i++) {
        uint64_t key = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(best, i));
        float score = (float)PyFloat_AsDouble(PyList_GET_ITEM(scores, i));
        if (PyErr_Occurred())
            return 0;
        if (key > limit) {
            PyErr_SetString(PyExc_ValueError, "an answered item is none of the candidates");
            return 0;
        }
        memcpy(to + i * width, &key, (size_t)width);
        memcpy(to + k * width + 4 * i, &score, 4);
    }
    return 1;
}

/* keys [parts] of sizes [parts]; best, scores: lists (k). The body, and in *bytes the width of a candidate (2, 3, 4, 8);
 * None: there is a hashed key. */
PyObject *aif_request_body(const uint64_t *const *keys, const int64_t *sizes, int64_t parts, PyObject *best,
                           PyObject *scores, int64_t *bytes) {
    uint64_t all = 0; /* as wide as the widest */
    int64_t n = 0;
    for (int64_t p = 0; p < parts; n += sizes[p++])
        for (int64_t i = 0; i < sizes[p]; i++)
            all |= keys[p][i];
    if (all & HASHED_BIT)
        Py_RETURN_NONE;
    int width = all >> 32 ? 8 : all >> 24 ? 4 : all >> 16 ? 3 : 2, item_width = width == 3 ? 4 : width;
    Py_ssize_t k = PyList_GET_SIZE(best);
    if (PyList_GET_SIZE(scores) != k)
        return PyErr_Format(PyExc_ValueError, "%zd items, %zd scores", k, PyList_GET_SIZE(scores));
    PyObject *made = PyBytes_FromStringAndSize(NULL, n * width + k * (item_width + 4));
    if (!made)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(made), *third = to + 2 * n, *items = to + n * width;
    for (int64_t p = 0; p < parts; p++) {
        if (width == 3) {
            put_three(to, third, keys[p], sizes[p]);
            to += 2 * sizes[p], third += sizes[p];
        } else {
            put_numbers(to, keys[p], sizes[p], width);
            to += width * sizes[p];
        }
    }
    uint64_t limit = width == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * width) - 1;
    if (!put_items(items, best, scores, item_width, limit)) {
        Py_DECREF(made);
        return NULL;
    }
    *bytes = width;
    return made;
}
#endif
