/* What a chunk's rows go through beside the steps: the input product, copies, the cell's function of x. */

/* out = init + rows W for `count` rows and the panels [from, to); `step` from row to row of out, init_step of init: 0
 * for a bias. */
typedef struct {
    const real *init;
    int64_t init_step;
    real *out;
    int64_t step;
} product_sums;

static void product_rows(frnn_job *job, const frnn_worker *w, const packing *p, const real *panels,
                         const real *const *rows, int64_t count, int64_t from, int64_t to, product_sums s) {
    const split tiles = tiles_of(p, count);
    for (int64_t j = from; j < to && !skips(job, w, count, p->K, TILE_VECS * VL); ++j) {
        const int64_t column = packed_column(p, j), units = panel_units(p, j);
        const int vecs = column_vectors(p, j, p->gates);
        for (int64_t i = 0; i < tiles.parts; ++i) {
            const int64_t row = split_at(&tiles, i), height = split_at(&tiles, i + 1) - row;
            const int64_t following = i + 1 < tiles.parts && j == from ? split_at(&tiles, i + 2) : 0;
            for (int64_t r = row + height; r < following; ++r) fetch_ahead(rows[r], p->K);
            tile_product((int)height, vecs, p->K, p->slice, rows + row, 1, panels + packed_panel(p, j),
                         s.init + row * s.init_step + column, s.init_step, s.out + row * s.step + column, s.step,
                         p->far ? next_lines(p, panels, j, from, to, 0, i) : NULL);
            for (int64_t n = p->gates * units; n < p->columns * units; n += VL) { /* columns without weights */
                const vec b = v_load(s.init + column + n);
                for (int64_t r = row; r < row + height; ++r) v_store(s.out + r * s.step + column + n, b);
            }
        }
    }
}

/* Copies columns [column, column + n) of rows that lie in `from` to the same places in `to`, if there is one. */
static void copy_rows(const frnn_batch *batch, real *const *rows, int64_t count, const frnn_rows *from, void *to,
                      int64_t column, int64_t n) {
    if (!to) return;
    const size_t bytes = (size_t)n * sizeof(real);
    const int large = bytes % LINE_BYTES == 0 && (double)batch->T * (double)batch->B * (double)bytes >= STREAMED_COPY;
    for (int64_t r = 0; r < count; ++r) {
        const real *in = rows[r] + column;
        real *out = (real *)to + (in - (const real *)from->data);
        if (large && (uintptr_t)out % LINE_BYTES == 0) {
            for (int64_t i = 0; i < n; i += VL) v_stream(out + i, v_load(in + i));
        } else {
            memcpy(out, in, bytes);
        }
    }
}

/* Rows of n reals through the function f into `mapped`, and the table made to point there. */
static void map_rows(int f, real **rows, int64_t count, int64_t n, real *mapped, int64_t step) {
    for (int64_t r = 0; r < count; ++r, mapped += step) {
        for (int64_t i = 0; i < n; i += VL) v_store(mapped + i, activation(f, load_upto(rows[r] + i, n - i)));
        rows[r] = mapped;
    }
}

/* The same for tangents of inputs, rows laid out as x: dx times f'(x). */
static void map_tangents(int f, real **rows, int64_t count, int64_t n, const frnn_rows *dx, const frnn_rows *x,
                         real *mapped, int64_t step) {
    for (int64_t r = 0; r < count; ++r, mapped += step) {
        const real *at = (const real *)x->data + (rows[r] - (const real *)dx->data);
        for (int64_t i = 0; i < n; i += VL) {
            const vec value = activation(f, load_upto(at + i, n - i));
            v_store(mapped + i, activation_gradient(f, value, load_upto(rows[r] + i, n - i)));
        }
        rows[r] = mapped;
    }
}
