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

#define MOST_PARTS 16 /* as many as channels answer, and the filler's rest */

/* The body of keys [parts], and before it the width of a candidate in bytes: (2, 3, 4 or 8, bytes). None: there is a
 * hashed key. */
static PyObject *body_of(const Py_buffer *keys, Py_ssize_t parts, PyObject *best, PyObject *scores) {
    uint64_t all = 0; /* as wide as the widest */
    int64_t n = 0;
    for (Py_ssize_t p = 0; p < parts; p++) {
        const uint64_t *from = keys[p].buf;
        int64_t count = keys[p].len / 8;
        for (int64_t i = 0; i < count; i++)
            all |= from[i];
        n += count;
    }
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
    for (Py_ssize_t p = 0; p < parts; p++) {
        int64_t count = keys[p].len / 8;
        if (width == 3) {
            put_three(to, third, keys[p].buf, count);
            to += 2 * count, third += count;
        } else {
            put_numbers(to, keys[p].buf, count, width);
            to += width * count;
        }
    }
    uint64_t limit = width == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * width) - 1;
    if (!put_items(items, best, scores, item_width, limit)) {
        Py_DECREF(made);
        return NULL;
    }
    return Py_BuildValue("(iN)", width, made);
}

/* keys: list of arrays of u64; best, scores: lists (k). As body_of. */
PyObject *aif_request_body(PyObject *keys, PyObject *best, PyObject *scores) {
    Py_buffer parts[MOST_PARTS];
    Py_ssize_t held = 0, count = PyList_GET_SIZE(keys);
    PyObject *made = NULL;
    if (count > MOST_PARTS)
        return PyErr_Format(PyExc_ValueError, "%zd parts, at most %d", count, MOST_PARTS);
    while (held < count && !PyObject_GetBuffer(PyList_GET_ITEM(keys, held), &parts[held], PyBUF_SIMPLE))
        held++;
    if (held == count)
        made = body_of(parts, count, best, scores);
    while (held)
        PyBuffer_Release(&parts[--held]);
    return made;
}
#endif
