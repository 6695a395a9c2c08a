/* A strict reader of the JSON that item updates are made of. Whatever it is not sure of it refuses: the caller then
 * takes the careful way (msgspec), so a refusal costs time and never changes a result. Contract: items.py. */
#ifndef AIF_JSON_SCAN_H
#define AIF_JSON_SCAN_H
#include <stdint.h>
#include <string.h>

#define MAX_DEPTH 16
#define MAX_DIGITS 18 /* of a mantissa: fits 64 bits; beyond 2^53 a decimal fraction is refused */

typedef struct {
    const uint8_t *at, *end;
} scan;

typedef struct {
    const uint8_t *at;
    int64_t size;
    int escaped;
} text;

typedef struct {
    double value;
    int64_t whole;
    int is_whole;
} number;

static const double TENS[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static inline void skip_space(scan *s) {
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\t' || *s->at == '\r'))
        s->at++;
}

static inline int take(scan *s, uint8_t wanted) {
    skip_space(s);
    if (s->at >= s->end || *s->at != wanted)
        return 0;
    s->at++;
    return 1;
}

static inline int peek(scan *s) {
    skip_space(s);
    return s->at < s->end ? *s->at : -1;
}

static inline int take_word(scan *s, const char *word, int64_t size) {
    if (s->end - s->at < size || memcmp(s->at, word, (size_t)size))
        return 0;
    s->at += size;
    return 1;
}

/* The text between quotes; one-letter escapes are passed over and noted, \u is refused. */
static inline int take_text(scan *s, text *out) {
    if (!take(s, '"'))
        return 0;
    out->at = s->at;
    out->escaped = 0;
    for (; s->at < s->end; s->at++) {
        uint8_t c = *s->at;
        if (c == '"') {
            out->size = s->at++ - out->at;
            return 1;
        }
        if (c < 0x20)
            return 0;
        if (c == '\\') {
            if (++s->at >= s->end || !*s->at || !strchr("\"\\/bfnrt", *s->at))
                return 0;
            out->escaped = 1;
        }
    }
    return 0;
}

/* Exact, or refused: mantissa below 2^53 and a power of ten below 10^22 give the nearest double by one operation
 * (W. D. Clinger, How to read floating point numbers accurately, 1990). Whole numbers of up to 18 digits too. */
static inline int take_number(scan *s, number *out) {
    skip_space(s);
    int negative = s->at < s->end && *s->at == '-';
    s->at += negative;
    const uint8_t *start = s->at;
    uint64_t mantissa = 0;
    int digits = 0, fraction = 0, exponent = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
        mantissa = mantissa * 10 + (uint64_t)(*s->at++ - '0');
        if (++digits > MAX_DIGITS)
            return 0;
    }
    if (!digits || (*start == '0' && digits > 1))
        return 0;
    out->is_whole = 1;
    if (s->at < s->end && *s->at == '.') {
        out->is_whole = 0;
        s->at++;
        while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
            mantissa = mantissa * 10 + (uint64_t)(*s->at++ - '0');
            fraction++;
            if (++digits > MAX_DIGITS)
                return 0;
        }
        if (!fraction)
            return 0;
    }
    if (s->at < s->end && (*s->at == 'e' || *s->at == 'E')) {
        out->is_whole = 0;
        s->at++;
        int down = s->at < s->end && *s->at == '-';
        s->at += down || (s->at < s->end && *s->at == '+');
        int found = 0;
        for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
            exponent = exponent * 10 + (*s->at - '0');
            if (++found > 3)
                return 0;
        }
        if (!found)
            return 0;
        exponent = down ? -exponent : exponent;
    }
    out->whole = negative ? -(int64_t)mantissa : (int64_t)mantissa;
    if (out->is_whole) {
        out->value = (double)out->whole;
        return mantissa || !negative; /* "-0" is one thing as a whole number, another as a fraction */
    }
    exponent -= fraction;
    if (mantissa >> 53 || exponent < -22 || exponent > 22)
        return 0;
    double value = exponent < 0 ? (double)mantissa / TENS[-exponent] : (double)mantissa * TENS[exponent];
    out->value = negative ? -value : value;
    return 1;
}

/* Any value, looked at and left. */
static int skip_value(scan *s, int depth) {
    text ignored;
    number also;
    int c = peek(s);
    if (c == '"')
        return take_text(s, &ignored);
    if (c == '-' || (c >= '0' && c <= '9'))
        return take_number(s, &also);
    if (c == 't')
        return take_word(s, "true", 4);
    if (c == 'f')
        return take_word(s, "false", 5);
    if (c == 'n')
        return take_word(s, "null", 4);
    if ((c != '{' && c != '[') || depth >= MAX_DEPTH)
        return 0;
    int closing = c == '{' ? '}' : ']';
    s->at++;
    if (peek(s) == closing)
        return take(s, (uint8_t)closing);
    do {
        if (c == '{' && !(take_text(s, &ignored) && take(s, ':')))
            return 0;
        if (!skip_value(s, depth + 1))
            return 0;
    } while (take(s, ','));
    return take(s, (uint8_t)closing);
}

/* Strict UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
static int is_utf8(const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        uint8_t c = *at++;
        if (c < 0x80)
            continue;
        int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
        if (c < 0xC2 || c > 0xF4 || end - at < more)
            return 0;
        uint8_t low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
        if (*at < low || *at > high)
            return 0;
        for (int i = 1; i < more; i++)
            if ((at[i] & 0xC0) != 0x80)
                return 0;
        at += more;
    }
    return 1;
}

static int is_text(const uint8_t *at, const uint8_t *end) {
    uint8_t any = 0;
    for (const uint8_t *c = at; c < end; c++)
        any |= *c;
    return any < 0x80 || is_utf8(at, end);
}
#endif
