/* Records of item updates -> columns: headers, order, key, and where the features stand in the JSON. Contract: items.py.
 * Called with the interpreter's lock held; touches no reference count and raises nothing. */
#if __has_include(<Python.h>) /* else the library is built without these, and they run in Python */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "items.h"
#include "json_scan.h"

#define RECORD_FIELDS 8 /* topic, partition, offset, timestamp, timestamp type, key, value, headers */
enum { OFFSET = 2, TIMESTAMP = 3, KEY = 5, VALUE = 6, HEADERS = 7 };
#define DIRECT_LIMIT (1LL << 62)
#define MAX_TIME_MS 253402300799999LL
#define MAX_TEXT 1024 /* bytes here, characters there: what is longer takes the careful way */
#define MAX_ID 256
#define MAX_LIST 256
#define F32_MAX 3.4028234663852886e38

static int is_bytes(PyObject *object, const char *wanted, Py_ssize_t size) {
    return PyBytes_Check(object) && PyBytes_GET_SIZE(object) == size && !memcmp(PyBytes_AS_STRING(object), wanted, size);
}
#define IS(object, literal) is_bytes(object, literal, sizeof(literal) - 1)

static int digits(const char *at, int count) {
    int value = 0;
    for (int i = 0; i < count; i++) {
        if (at[i] < '0' || at[i] > '9')
            return -1;
        value = value * 10 + (at[i] - '0');
    }
    return value;
}

/* "2023-11-14T22:13:20.123Z", nothing else, from 1970 on; -1 for others. Days by Howard Hinnant's days_from_civil. */
static int64_t time_ms(PyObject *object) {
    if (!PyBytes_Check(object) || PyBytes_GET_SIZE(object) != 24)
        return -1;
    const char *t = PyBytes_AS_STRING(object);
    if (t[4] != '-' || t[7] != '-' || t[10] != 'T' || t[13] != ':' || t[16] != ':' || t[19] != '.' || t[23] != 'Z')
        return -1;
    int year = digits(t, 4), month = digits(t + 5, 2), day = digits(t + 8, 2);
    int hour = digits(t + 11, 2), minute = digits(t + 14, 2), second = digits(t + 17, 2), ms = digits(t + 20, 3);
    static const int DAYS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1970 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
        second < 0 || second > 59 || ms < 0)
        return -1;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (day > DAYS[month - 1] + (leap && month == 2))
        return -1;
    int64_t y = year - (month <= 2), era = y / 400, of_era = y - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t days = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
    return ((days * 24 + hour) * 60 + minute) * 60000LL + second * 1000 + ms;
}

/* The event time, or -1 where the careful reader has to look (it says what is wrong, and takes other forms). */
static int64_t read_headers(PyObject *headers, PyObject *worker) {
    if (!PyList_Check(headers) && !PyTuple_Check(headers))
        return -1;
    int version = 0, kind = 0, id = 0, source = 0, times = 0;
    int64_t found = -1;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(headers); i++) {
        PyObject *pair = PySequence_Fast_GET_ITEM(headers, i);
        Py_ssize_t size;
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(pair, 0)))
            return -1;
        PyObject *name = PyTuple_GET_ITEM(pair, 0), *value = PyTuple_GET_ITEM(pair, 1);
        if (!PyUnicode_IS_COMPACT_ASCII(name) || !PyBytes_Check(value))
            return -1;
        const char *text = PyUnicode_AsUTF8AndSize(name, &size); /* ASCII: no copy is made */
        if (size >= 4 && !memcmp(text, "aif_", 4))
            return -1; /* a redrive's headers are checked by the careful reader */
        const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(value);
        if (size >= 3 && !memcmp(text, "ce_", 3) && !is_text(bytes, bytes + PyBytes_GET_SIZE(value)))
            return -1;
#define NAMED(literal) (size == sizeof(literal) - 1 && !memcmp(text, literal, sizeof(literal) - 1))
        if (NAMED("ce_specversion")) {
            version += IS(value, "1.0") ? 1 : 2;
        } else if (NAMED("ce_type")) {
            kind += IS(value, "aif.item.upserted") ? 1 : 2;
        } else if (NAMED("ce_id")) {
            id++;
        } else if (NAMED("ce_source")) {
            source++;
            if (PyBytes_GET_SIZE(value) == PyBytes_GET_SIZE(worker) &&
                !memcmp(PyBytes_AS_STRING(value), PyBytes_AS_STRING(worker), (size_t)PyBytes_GET_SIZE(worker)))
                return -1; /* a winner published again: it has another order */
        } else if (NAMED("ce_time")) {
            times++;
            found = time_ms(value);
        } else if (NAMED("ce_firstoffset")) {
            return -1;
        }
    }
    return version == 1 && kind == 1 && id == 1 && source == 1 && times == 1 ? found : -1;
}

typedef struct {
    item_entry *entries;
    int64_t used, room;
    float *numbers;
    int64_t numbers_used, numbers_room;
} pools;

static int entry_at(pools *p, const uint8_t *base, const text *name, int kind, const text *value, double number) {
    if (p->used >= p->room)
        return 0;
    item_entry *e = &p->entries[p->used++];
    e->name_at = (uint32_t)(name->at - base);
    e->name_size = (uint32_t)name->size;
    e->kind = kind;
    e->at = value ? (uint32_t)(value->at - base) : 0;
    e->size = value ? (uint32_t)value->size : 0;
    e->number = number;
    return 1;
}

static int plain_text(scan *s, text *out) { return take_text(s, out) && !out->escaped && out->size <= MAX_TEXT; }

static int read_attributes(scan *s, const uint8_t *base, pools *p) {
    text name, value;
    number found;
    if (!take(s, '{'))
        return 0;
    if (peek(s) == '}')
        return take(s, '}');
    do {
        if (!plain_text(s, &name) || !take(s, ':'))
            return 0;
        int c = peek(s);
        if (c == '"') {
            if (!plain_text(s, &value) || !entry_at(p, base, &name, ENTRY_TEXT, &value, 0))
                return 0;
        } else if (c == '[') {
            if (!take(s, '[') || !entry_at(p, base, &name, ENTRY_LIST, NULL, 0))
                return 0;
            item_entry *head = &p->entries[p->used - 1];
            if (peek(s) != ']')
                do {
                    if (++head->size > MAX_LIST || !plain_text(s, &value) ||
                        !entry_at(p, base, &name, ENTRY_TEXT, &value, 0))
                        return 0;
                } while (take(s, ','));
            if (!take(s, ']'))
                return 0;
        } else if (!take_number(s, &found) || !entry_at(p, base, &name, ENTRY_NUMBER, NULL, found.value)) {
            return 0;
        }
    } while (take(s, ','));
    return take(s, '}');
}

/* -1: refused; else the number of floats. */
static int64_t read_content(scan *s, pools *p) {
    number found;
    int64_t from = p->numbers_used;
    if (!take(s, '['))
        return -1;
    if (peek(s) != ']')
        do {
            if (p->numbers_used >= p->numbers_room || !take_number(s, &found) || found.value > F32_MAX ||
                found.value < -F32_MAX)
                return -1;
            p->numbers[p->numbers_used++] = (float)found.value;
        } while (take(s, ','));
    return take(s, ']') ? p->numbers_used - from : -1;
}

/* The item's key, which is the record's too; -1 for ids that are no plain decimals. */
static int64_t direct_key(const text *id, PyObject *key) {
    if (!PyBytes_Check(key) || PyBytes_GET_SIZE(key) != id->size || id->size < 1 || id->size > 19 ||
        memcmp(PyBytes_AS_STRING(key), id->at, (size_t)id->size) || (id->at[0] == '0' && id->size > 1))
        return -1;
    uint64_t value = 0;
    for (int64_t i = 0; i < id->size; i++) {
        if (id->at[i] < '0' || id->at[i] > '9')
            return -1;
        value = value * 10 + (uint64_t)(id->at[i] - '0'); /* 19 digits stay below 2^64 */
    }
    return value < DIRECT_LIMIT ? (int64_t)value : -1;
}

enum { ITEM_ID = 1, CATEGORY = 2, ATTRIBUTES = 4, CONTENT = 8, TIME = 16 };

static int field_of(const text *name) {
#define FIELD(literal, bit) \
    if (name->size == sizeof(literal) - 1 && !memcmp(name->at, literal, sizeof(literal) - 1)) \
        return bit
    FIELD("item_id", ITEM_ID);
    FIELD("category", CATEGORY);
    FIELD("attributes", ATTRIBUTES);
    FIELD("content_vector", CONTENT);
    FIELD("event_time_ms", TIME);
    return 0;
}

/* Text without escapes, or a whole number >= 0: the same id as its decimal string. */
static int take_id(scan *s, text *out) {
    number found;
    if (peek(s) == '"')
        return take_text(s, out) && !out->escaped;
    *out = (text){s->at, 0, 0};
    if (peek(s) == '-' || !take_number(s, &found) || !found.is_whole)
        return 0;
    out->size = s->at - out->at;
    return 1;
}

static int read_field(scan *s, int field, const uint8_t *base, PyObject *key, item_column *out, pools *p) {
    text value = {base, 0, 0};
    number found;
    if (field == ITEM_ID) {
        int64_t direct = take_id(s, &value) ? direct_key(&value, key) : -1;
        out->key = (uint64_t)direct;
        return direct >= 0;
    }
    if (field == CATEGORY) {
        int fits = take_id(s, &value) && value.size >= 1 && value.size <= MAX_ID;
        out->category_at = (uint32_t)(value.at - base);
        out->category_size = (uint32_t)value.size;
        return fits;
    }
    if (field == ATTRIBUTES)
        return read_attributes(s, base, p);
    int nothing = peek(s) == 'n';
    if (nothing)
        return take_word(s, "null", 4);
    if (field == TIME)
        return take_number(s, &found) && found.is_whole && found.whole >= 0 && found.whole <= MAX_TIME_MS;
    out->content_count = read_content(s, p);
    return out->content_count >= 0;
}

static int read_value(PyObject *value, PyObject *key, item_column *out, pools *p) {
    const uint8_t *base = (const uint8_t *)PyBytes_AS_STRING(value);
    scan s = {base, base + PyBytes_GET_SIZE(value)};
    text name;
    int seen = 0;
    if (!is_text(s.at, s.end) || !take(&s, '{'))
        return 0;
    out->entries_from = p->used;
    out->content_from = p->numbers_used;
    out->content_count = -1;
    do {
        if (!take_text(&s, &name) || name.escaped || !take(&s, ':'))
            return 0;
        int field = field_of(&name);
        if (seen & field)
            return 0; /* named twice: the last counts, says the careful reader */
        seen |= field;
        if (field ? !read_field(&s, field, base, key, out, p) : !skip_value(&s, 0))
            return 0;
    } while (take(&s, ','));
    out->entries_count = p->used - out->entries_from;
    return take(&s, '}') && peek(&s) < 0 && (seen & (ITEM_ID | CATEGORY)) == (ITEM_ID | CATEGORY);
}

static int read_record(PyObject *record, PyObject *worker, int64_t ahead_ms, int64_t limit, item_column *out, pools *p) {
    if (!PyTuple_Check(record) || PyTuple_GET_SIZE(record) != RECORD_FIELDS)
        return 0;
    PyObject *key = PyTuple_GET_ITEM(record, KEY), *value = PyTuple_GET_ITEM(record, VALUE);
    PyObject *offset = PyTuple_GET_ITEM(record, OFFSET), *appended_ms = PyTuple_GET_ITEM(record, TIMESTAMP);
    if (!PyBytes_Check(key) || !PyBytes_Check(value) || !PyLong_Check(offset) || !PyLong_Check(appended_ms) ||
        PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value) > limit)
        return 0;
    int64_t event_ms = read_headers(PyTuple_GET_ITEM(record, HEADERS), worker);
    out->offset = (uint64_t)PyLong_AsLongLong(offset);
    out->appended_ms = PyLong_AsLongLong(appended_ms);
    out->event_time_ms = (uint64_t)event_ms;
    if (event_ms < 0 || event_ms - out->appended_ms > ahead_ms)
        return 0;
    return read_value(value, key, out, p);
}

/* Fills columns[i] for each record that it is sure of and says so in read[i]; `used`: entries and numbers in all. */
void aif_items_read(PyObject *records, PyObject *worker, int64_t ahead_ms, int64_t limit, item_column *columns,
                    uint8_t *read, item_entry *entries, int64_t entries_room, float *numbers, int64_t numbers_room,
                    int64_t *used) {
    pools p = {entries, 0, entries_room, numbers, 0, numbers_room};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(records); i++) {
        int64_t before = p.used, numbers_before = p.numbers_used;
        read[i] = (uint8_t)read_record(PyList_GET_ITEM(records, i), worker, ahead_ms, limit, &columns[i], &p);
        if (!read[i]) {
            p.used = before;
            p.numbers_used = numbers_before;
        }
    }
    used[0] = p.used;
    used[1] = p.numbers_used;
}
#endif
