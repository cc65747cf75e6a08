/* What a chunk's rows go through beside the steps: the input product, copies, the cell's function of x. */

/* A copy, laid out as the array that rows lie in; or none, `to` NULL. A large one goes past the caches. */
typedef struct {
    const real *from;
    real *to;
    int streams;
} row_copy;

static const row_copy no_copy = {NULL, NULL, 0};

static row_copy copy_of(const frnn_batch *batch, const frnn_rows *rows, void *to, int64_t width, int64_t streamed) {
    const double bytes = (double)batch->T * (double)batch->B * (double)width * sizeof(real);
    return (row_copy){rows->data, to, bytes >= (double)streamed};
}

/* Copies columns [column, column + n) of some rows. */
static void copy_rows(const row_copy *copy, const real *const *rows, int64_t count, int64_t column, int64_t n) {
    for (int64_t r = 0; copy->to && r < count; ++r) {
        const real *in = rows[r] + column;
        real *out = copy->to + (in - copy->from);
        if (copy->streams && n % LINE == 0 && (uintptr_t)out % LINE_BYTES == 0) {
            for (int64_t i = 0; i < n; i += VL) v_stream(out + i, v_load(in + i));
        } else {
            memcpy(out, in, (size_t)n * sizeof(real));
        }
    }
}

/* out = init + rows W for `count` rows and the panels [from, to); `step` from row to row of out, init_step of init: 0
 * for a bias. */
typedef struct {
    const real *init;
    int64_t init_step;
    real *out;
    int64_t step;
} product_sums;

/* A copy of a tile's rows is written while the product of the next one goes on, if the processor holds so many stores
 * that are on their way; the rows of a chunk together would take as long as memory does. */
enum { STORES_AHEAD = 64 };

static void product_rows(frnn_job *job, const frnn_worker *w, const packing *p, const real *panels,
                         const real *const *rows, int64_t count, int64_t from, int64_t to, product_sums s,
                         const row_copy *copy) {
    const split tiles = tiles_of(p, count);
    const int by_tile = p->rows * divide_up(p->K, LINE) <= STORES_AHEAD;
    if (!by_tile) copy_rows(copy, rows, count, 0, p->K);
    for (int64_t j = from; j < to && !skips(job, w, count, p->K, TILE_VECS * VL); ++j) {
        const int64_t column = packed_column(p, j), units = panel_units(p, j);
        const int vecs = column_vectors(p, j, p->gates);
        for (int64_t i = 0; i < tiles.parts; ++i) {
            const int64_t row = split_at(&tiles, i), height = split_at(&tiles, i + 1) - row;
            const int64_t following = i + 1 < tiles.parts && j == from ? split_at(&tiles, i + 2) : 0;
            lines_ahead ahead;
            ahead.at_once = p->far;
            ahead.count = 0;
            for (int64_t r = row + height; r < following; ++r) ask_ahead(&ahead, rows[r], p->K);
            if (p->far) ask_next_lines(p, panels, j, from, to, 0, i, &ahead);
            tile_product((int)height, vecs, p->K, p->slice, rows + row, 1, panels + packed_panel(p, j),
                         s.init + row * s.init_step + column, s.init_step, s.out + row * s.step + column, s.step,
                         &ahead);
            if (by_tile && j == from) copy_rows(copy, rows + row, height, 0, p->K);
            for (int64_t n = p->gates * units; n < p->columns * units; n += VL) { /* columns without weights */
                const vec b = v_load(s.init + column + n);
                for (int64_t r = row; r < row + height; ++r) v_store(s.out + r * s.step + column + n, b);
            }
        }
    }
}

/* Rows of n reals through the function f into `mapped`, to where the table then points; each is copied on the way. */
static void map_rows(int f, real **rows, int64_t count, int64_t n, real *mapped, int64_t step, const row_copy *copy) {
    for (int64_t r = 0; r < count; ++r, mapped += step) {
        for (int64_t i = 0; i < n; i += VL) v_store(mapped + i, activation(f, load_upto(rows[r] + i, n - i)));
        copy_rows(copy, (const real *const *)rows + r, 1, 0, n);
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
