/* The scorer's loops for one instruction set; score.c includes this once for each, with
 *   NAME(x)    the name of x at this level         FLOATS     floats in a vector
 *   TARGET     the function attribute               HALVES(p)  FLOATS halves at p as floats
 *   SUM(v)     sum over a vector's lanes            TILE_ROWS x TILE_VECS   vectors that a tile keeps in registers
 * A row's result depends on that row alone: a block is filled up to whole tiles, so every row is summed in the
 * same order wherever it lies. */

typedef float NAME(vec) __attribute__((vector_size(FLOATS * 4), aligned(4)));
typedef int32_t NAME(bits) __attribute__((vector_size(FLOATS * 4), aligned(4)));

#define LOAD(p) (*(const NAME(vec) *)(p))
#define STORE(p, value) (*(NAME(vec) *)(p) = (value))

/* c[rows][columns] += a[rows][k] @ b[k][columns]; rows a multiple of TILE_ROWS, columns of PAD. */
TARGET static INLINE void NAME(tile)(int64_t k, const float *restrict a, int64_t a_stride, const float *restrict b,
                                     int64_t columns, float *restrict c) {
    NAME(vec) sum[TILE_ROWS][TILE_VECS];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < TILE_VECS; v++)
            sum[r][v] = LOAD(c + r * columns + v * FLOATS);
    for (int64_t i = 0; i < k; i++) {
        NAME(vec) row[TILE_VECS];
        for (int v = 0; v < TILE_VECS; v++)
            row[v] = LOAD(b + i * columns + v * FLOATS);
        for (int r = 0; r < TILE_ROWS; r++)
            for (int v = 0; v < TILE_VECS; v++)
                sum[r][v] += a[r * a_stride + i] * row[v];
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < TILE_VECS; v++)
            STORE(c + r * columns + v * FLOATS, sum[r][v]);
}

TARGET static void NAME(product)(int64_t rows, int64_t k, const float *a, int64_t a_stride, const float *b,
                                 int64_t columns, float *c) {
    for (int64_t at = 0; at < columns; at += TILE_VECS * FLOATS)
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            NAME(tile)(k, a + row * a_stride, a_stride, b + at, columns, c + row * columns + at);
}

/* n halves as floats, and zeros up to a whole vector. */
TARGET static INLINE void NAME(widen)(const uint8_t *halves, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS)
        STORE(out + i, HALVES(halves + 2 * i));
    for (; i < n; i++)
        out[i] = half_to_float(halves + 2 * i);
}

/* h_i and the bag's rows of one item, two vectors at a time. */
TARGET static INLINE void NAME(gathered)(const struct aif_scorer *m, const struct aif_user *u, const uint8_t *row,
                                         float *out) {
    const float *from[MAX_BAG];
    const int used = bag_rows(m, u, row, from);
    const uint8_t *h = row + m->at_h;
    for (int64_t i = 0; i < m->Hp; i += 2 * FLOATS) {
        NAME(vec) low, high;
        if (i + 2 * FLOATS <= m->H) {
            low = HALVES(h + 2 * i);
            high = HALVES(h + 2 * (i + FLOATS));
        } else {
            float rest[2 * FLOATS] = {0};
            for (int64_t j = i; j < m->H; j++)
                rest[j - i] = half_to_float(h + 2 * j);
            low = LOAD(rest);
            high = LOAD(rest + FLOATS);
        }
        for (int j = 0; j < used; j++) {
            low += LOAD(from[j] + i);
            high += LOAD(from[j] + i + FLOATS);
        }
        STORE(out + i, low);
        STORE(out + i + FLOATS, high);
    }
}

/* The rows of `bytes` bytes of a signature, from the first one's 2 x 16 at `table` on, added to `vecs` (at most 4)
 * vectors at out. */
TARGET static INLINE void NAME(add_nibbles)(const uint8_t *sig, const int bytes, const float *table,
                                            const int64_t columns, const int vecs, float *out) {
    NAME(vec) sum[4];
    for (int v = 0; v < vecs; v++)
        sum[v] = LOAD(out + v * FLOATS);
    for (int byte = 0; byte < bytes; byte++, table += 32 * columns) {
        const float *low = table + (sig[byte] & 15) * columns, *high = table + (16 + (sig[byte] >> 4)) * columns;
        for (int v = 0; v < vecs; v++)
            sum[v] += LOAD(low + v * FLOATS) + LOAD(high + v * FLOATS);
    }
    for (int v = 0; v < vecs; v++)
        STORE(out + v * FLOATS, sum[v]);
}

/* The same bytes of all items with content, so that their rows serve 64 items before they leave L1. */
TARGET static INLINE void NAME(linear_part)(const struct aif_scorer *m, const uint8_t *rows, int64_t n, int64_t at,
                                            const int bytes, const float *table, const int64_t columns,
                                            float *hidden) {
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *row = rows + i * m->row_bytes, *sig = row + m->at_sig + at;
        if (!(row[m->at_flags] & HAS_CONTENT))
            continue;
        float *out = hidden + i * columns;
        int64_t j = 0;
        for (; j + 4 * FLOATS <= columns; j += 4 * FLOATS)
            NAME(add_nibbles)(sig, bytes, table + j, columns, 4, out + j);
        for (; j < columns; j += 2 * FLOATS)
            NAME(add_nibbles)(sig, bytes, table + j, columns, 2, out + j);
    }
}

/* hidden += the linear term of a block. */
TARGET static INLINE void NAME(linear)(const struct aif_scorer *m, const struct aif_user *u, const uint8_t *rows,
                                       int64_t n, const int64_t columns, float *hidden) {
    const float *table = u->bag + u->nibble_row * columns;
    int64_t at = 0;
    for (; at + 4 <= m->sig_bytes; at += 4, table += 4 * 32 * columns)
        NAME(linear_part)(m, rows, n, at, 4, table, columns, hidden);
    for (; at < m->sig_bytes; at++, table += 32 * columns)
        NAME(linear_part)(m, rows, n, at, 1, table, columns, hidden);
}

/* relu(layer norm) in place. */
TARGET static INLINE void NAME(normed)(const struct aif_scorer *m, float *hidden) {
    NAME(vec) sum = {0}, squares = {0};
    for (int64_t i = 0; i < m->Hp; i += FLOATS)
        sum += LOAD(hidden + i);
    const float mean = SUM(sum) / (float)m->H;
    for (int64_t i = 0; i < m->Hp; i += FLOATS) {
        const NAME(vec) from_mean = (LOAD(hidden + i) - mean) * LOAD(m->real + i);
        squares += from_mean * from_mean;
    }
    const float scale = 1.0f / sqrtf(SUM(squares) / (float)m->H + m->eps);
    for (int64_t i = 0; i < m->Hp; i += FLOATS) {
        const NAME(vec) y = (LOAD(hidden + i) - mean) * scale * LOAD(m->norm + i) + LOAD(m->bias + i);
        STORE(hidden + i, (NAME(vec))((NAME(bits))y & (y > (NAME(vec)){0})));
    }
}

TARGET static INLINE float NAME(logit)(const struct aif_scorer *m, const struct aif_user *u, const float *head,
                                       const float *t) {
    NAME(vec) sum = {0};
    for (int64_t i = 0; i < m->Fp; i += FLOATS) {
        const NAME(vec) y = LOAD(head + i);
        sum += (NAME(vec))((NAME(bits))y & (y > (NAME(vec)){0})) * LOAD(m->down + i);
    }
    float dot = 0;
    int64_t i = 0;
    NAME(vec) products = {0};
    for (; i + FLOATS <= m->D; i += FLOATS)
        products += LOAD(t + i) * LOAD(u->u + i);
    for (; i < m->D; i++)
        dot += t[i] * u->u[i];
    return SUM(sum) + m->down_bias + SUM(products) + dot;
}

TARGET static void NAME(block)(const struct aif_scorer *m, const struct aif_user *u, const uint8_t *rows, int64_t n,
                               const struct work *work, float *scores) {
    const int64_t tiles = (n + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    const int64_t at_t = m->at_x_t;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *row = rows + i * m->row_bytes;
        float *x = work->x + i * m->width;
        if (m->K)
            NAME(widen)(row + m->at_w, m->K, x);
        NAME(widen)(row + m->at_t, m->D, x + at_t);
        if (at_t + m->D < m->width)
            x[m->width - 1] = 0;
        NAME(gathered)(m, u, row, work->hidden + i * m->Hp);
    }
    if (u->nibble_row >= 0) {
        if (m->Hp == 64) /* the usual width as a constant: addresses by shifts */
            NAME(linear)(m, u, rows, n, 64, work->hidden);
        else
            NAME(linear)(m, u, rows, n, m->Hp, work->hidden);
    }
    memset(work->x + n * m->width, 0, (size_t)((tiles - n) * m->width) * sizeof(float));
    memset(work->hidden + n * m->Hp, 0, (size_t)((tiles - n) * m->Hp) * sizeof(float));
    for (int64_t i = 0; i < tiles; i++)
        memcpy(work->head + i * m->Fp, m->up_bias, (size_t)m->Fp * sizeof(float));
    if (work->pairs) {
#ifdef PAIRS
        NAME(pair_product)(tiles, m->width, work->x, work->first_pairs, m->Hp, work->hidden, work->pairs);
        for (int64_t i = 0; i < tiles; i++)
            NAME(normed)(m, work->hidden + i * m->Hp);
        NAME(pair_product)(tiles, m->Hp, work->hidden, work->up_pairs, m->Fp, work->head, work->pairs);
#endif
    } else {
        NAME(product)(tiles, m->width, work->x, m->width, u->first, m->Hp, work->hidden);
        for (int64_t i = 0; i < tiles; i++)
            NAME(normed)(m, work->hidden + i * m->Hp);
        NAME(product)(tiles, m->Hp, work->hidden, m->Hp, m->up, m->Fp, work->head);
    }
    for (int64_t i = 0; i < n; i++)
        scores[i] = NAME(logit)(m, u, work->head + i * m->Fp, work->x + i * m->width + at_t);
}

#undef LOAD
#undef STORE
#undef NAME
#undef TARGET
#undef FLOATS
#undef HALVES
#undef SUM
#undef TILE_ROWS
#undef TILE_VECS
