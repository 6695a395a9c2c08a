/* Ids as a request names them -> keys. Contract: ids.py. */
#if __has_include(<Python.h>) /* else the library is built without these, and they run in Python */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#define DIRECT_LIMIT (INT64_C(1) << 62)
#define SURELY_DIRECT_CHARS 18 /* 10^18 < 2^62 */

/* The key of a canonical decimal, or -1. */
static int64_t spelled(PyObject *id) {
    if (!PyUnicode_IS_COMPACT_ASCII(id))
        return -1;
    Py_ssize_t size = PyUnicode_GET_LENGTH(id);
    const uint8_t *at = PyUnicode_1BYTE_DATA(id);
    if (size < 1 || size > SURELY_DIRECT_CHARS || (at[0] == '0' && size > 1))
        return -1;
    int64_t number = 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned digit = (unsigned)at[i] - '0';
        if (digit > 9)
            return -1;
        number = number * 10 + digit;
    }
    return number;
}

/* ids: list (n) of str and int; out (n). 1: all are keys in out; 0: there is one that is not surely its own key. */
int aif_ids_read(PyObject *ids, uint64_t *out) {
    Py_ssize_t n = PyList_GET_SIZE(ids);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *id = PyList_GET_ITEM(ids, i);
        int64_t key = -1;
        int beyond = 0;
        if (PyLong_CheckExact(id))
            key = PyLong_AsLongLongAndOverflow(id, &beyond);
        else if (PyUnicode_CheckExact(id))
            key = spelled(id);
        if (beyond || key < 0 || key >= DIRECT_LIMIT)
            return 0;
        out[i] = (uint64_t)key;
    }
    return 1;
}
#endif
