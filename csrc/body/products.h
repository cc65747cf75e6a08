/* The products over all rows of a chunk that follow its steps in reverse: dx and the gradients of the weights, from the
 * chunk's deltas, which are still in cache. Workers share them out item by item. */

/* A product over a block of the chunk's rows, out += delta^T rows: the rows' columns [column, column + p.units), from
 * the deltas [first, first + count), whose rows of out come in blocks of `height` in the order of block. */
typedef struct {
    packing p;
    int64_t first, count, height, column;
    const int *block;
    real *const *rows;
    real *out;
    int64_t out_step;
} row_sum;

static int64_t row_sum_items(const row_sum *sum) { return sum->p.panels * tiles_of(&sum->p, sum->count).parts; }

/* A tile of a product, whose panel is packed on the way if it has a source (and one slice). */
INLINE void sourced_product(int height, int vecs, int64_t K, int64_t slice, const real *const *rows, int64_t stride,
                            const real *panel, const unpacked_panel *source, const real *init, int64_t init_step,
                            real *out, int64_t out_step, lines_ahead *ahead) {
    if (source) {
        packing_kernels[height - 1][vecs - 1](K, rows, stride, source, init, init_step, out, out_step);
    } else {
        tile_product(height, vecs, K, slice, rows, stride, panel, init, init_step, out, out_step, ahead);
    }
}

/* A tile of a product written, or added, to the first n columns of rows that may lie anywhere: by the micro-kernel
 * itself where they are whole vectors, one step apart, unless slices would be added one by one. */
static void put_product(int height, int vecs, int64_t K, int64_t slice, const real *const *rows, int64_t stride,
                        const real *panel, const unpacked_panel *source, real *const *out, int64_t n, int add,
                        lines_ahead *ahead) {
    int64_t step;
    if (n >= vecs * VL && (!add || K <= slice) && evenly((const real *const *)out, height, &step)) {
        sourced_product(height, vecs, K, slice, rows, stride, panel, source, add ? out[0] : zeros, add ? step : 0,
                        out[0], step, ahead);
        return;
    }
    _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
    sourced_product(height, vecs, K, slice, rows, stride, panel, source, zeros, 0, tile, vecs * VL, ahead);
    for (int r = 0; r < height; ++r) put_tile(tile + r * vecs * VL, 1, vecs, out[r], 0, n, add);
}

INLINE real *row_sum_out(const row_sum *sum, int64_t g) {
    return sum->out + (sum->block[g / sum->height] * sum->height + g % sum->height) * sum->out_step;
}

/* Takes items [from, to) of panels x tiles of deltas, for one block of at most BLOCK_ROWS rows. The first tile of a
 * panel packs it. */
static void sum_over_rows(const reverse_call *c, const real *delta, const row_sum *sum, int64_t rows, int add,
                          int64_t from, int64_t to) {
    const int64_t step = c->shape.step;
    const packing *p = &sum->p;
    const split tiles = tiles_of(p, sum->count), ahead = split_of(rows, tiles.parts);
    for (int64_t item = from, next; item < to && !skips(c->job, c->worker, sum->count, rows, TILE_VECS * VL);
         item = next) {
        const int64_t j = item / tiles.parts;
        next = least(to, (j + 1) * tiles.parts);
        const int vecs = panel_vectors(p, j);
        const int64_t column = first_vector(p, j) * VL, n = p->units - column;
        const int64_t next_column = column + vecs * VL, next_units = least(vecs * VL, p->units - next_column);
        const unpacked_panel source = {(const real *const *)sum->rows, sum->column + column, n - (vecs - 1) * VL,
                                       c->panel};
        const int64_t first = item - j * tiles.parts;
        for (int64_t i = first; i < next - j * tiles.parts; ++i) {
            const int64_t g = split_at(&tiles, i);
            const int height = (int)(split_at(&tiles, i + 1) - g);
            const real *columns[TILE_ROWS];
            real *out[TILE_ROWS];
            for (int r = 0; r < height; ++r) {
                columns[r] = delta + sum->first + g + r;
                out[r] = row_sum_out(sum, g + r) + column;
                fetch_ahead(out[r], vecs * VL);
            }
            for (int64_t r = split_at(&ahead, i); next_units > 0 && r < split_at(&ahead, i + 1); ++r) {
                fetch_ahead(sum->rows[r] + sum->column + next_column, next_units); /* of the next panel */
            }
            put_product(height, vecs, rows, rows, columns, step, c->panel, i == first ? &source : NULL, out, n, add,
                        NULL);
        }
    }
}

/* All products over rows of one direction: the weights' gradients, those that are wanted. */
enum { ROW_SUMS = 3 };

static int row_sums_of(const reverse_call *c, const reverse_direction *v, const frnn_weights *out, row_sum sums[]) {
    const reverse_shape *f = &c->shape;
    const cell_shape *s = &f->cell.shape;
    const int64_t I = c->layer->input_size, H = c->layer->hidden_size, O = c->layer->output_size;
    row_sum all[ROW_SUMS] = {
        {packing_of(I, 1, 1, 0), 0, s->x * H, H, 0, s->block, v->chunk.x, out->W, I},
        {packing_of(O, 1, 1, 0), s->h_first * H, s->h * H, H, 0, s->block + s->h_first, v->chunk.h, out->R, O}};
    if (f->projected) {
        all[2] = (row_sum){packing_of(H, 1, 1, 0), f->columns, O, O, s->kept * f->kept_step, s->block,
                           v->chunk.kept,          out->P,     H};
    } else if (f->stages == 2) {
        all[2] = (row_sum){packing_of(H, 1, 1, 0),
                           s->h * H,
                           (s->columns - s->h) * H,
                           H,
                           s->second * f->kept_step,
                           s->block + s->h,
                           v->chunk.kept,
                           out->R,
                           H};
    }
    int n = 0;
    for (int i = 0; i < ROW_SUMS; ++i) {
        if (all[i].out) sums[n++] = all[i];
    }
    return n;
}

/* out (+)= sum over the block's rows of delta [times other], n reals from `column` on. Rows are dealt out to PARTS
 * sums, which are then added two by two: they do not wait for each other, and are shorter to round. */
static void sum_vectors(const reverse_call *c, const real *delta, int64_t column, real *const *other, int64_t at,
                        int64_t rows, int64_t n, int add, real *const out[2]) {
    enum { PARTS = 8 };
    const int64_t step = c->shape.step;
    vec sum[PARTS];
    UNROLL for (int i = 0; i < PARTS; ++i) sum[i] = v_set1(0);
    delta += column;
    for (int64_t row = 0; row < rows; row += PARTS) {
        const int64_t left = rows - row;
        UNROLL for (int i = 0; i < PARTS; ++i, delta += step) {
            if (i >= left) break;
            const vec d = load_upto(delta, n);
            sum[i] = other ? v_fma(d, load_upto(other[row + i] + at, n), sum[i]) : v_add(sum[i], d);
        }
    }
    for (int half = PARTS / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) sum[i] = v_add(sum[i], sum[i + half]);
    }
    for (int b = 0; b < 2; ++b) {
        if (out[b]) store_upto(out[b], add ? v_add(load_upto(out[b], n), sum[0]) : sum[0], n);
    }
}

/* The gradients of biases and peepholes, for this worker's units. */
static void sum_biases(const reverse_call *c, const real *delta, real *const *c_before, real *const *kept, int64_t rows,
                       int add, const frnn_weights *out) {
    const cell_shape *s = &c->shape.cell.shape;
    const int64_t H = c->layer->hidden_size, vectors = divide_up(H, VL);
    const int64_t from = part(c->worker->id, c->worker->size, vectors);
    const int64_t to = part(c->worker->id + 1, c->worker->size, vectors);
    for (int g = 0; g < s->columns; ++g) {
        real *b_ih = g < s->x ? out->b_ih : NULL, *b_hh = s->h && g >= s->h_first ? out->b_hh : NULL;
        for (int64_t i = from; i < to && (b_ih || b_hh); ++i) {
            const int64_t unit = i * VL, row = s->block[g] * H + unit;
            real *const biases[2] = {b_ih ? b_ih + row : NULL, b_hh ? b_hh + row : NULL};
            sum_vectors(c, delta, g * H + unit, NULL, 0, rows, least(VL, H - unit), add, biases);
        }
    }
    for (int g = 0; s->peephole && out->p && g < 3; ++g) { /* i and f look at c_{t-1}, o at c_t */
        for (int64_t i = from; i < to; ++i) {
            const int64_t unit = i * VL, n = least(VL, H - unit);
            real *const peephole[2] = {(real *)out->p + g * H + unit, NULL};
            if (s->peephole_of[g] == NONE) {
                if (!add) store_upto(peephole[0], v_set1(0), n);
            } else {
                sum_vectors(c, delta, s->peephole_of[g] * H + unit, g < 2 ? c_before : kept,
                            g < 2 ? unit : s->c * c->shape.kept_step + unit, rows, n, add, peephole);
            }
        }
    }
}

/* dx = delta W, or dx += where two directions share it, for the chunk's rows [from, to); times f' if the layer reads
 * f(x), which v->chunk.x then is. */
static void input_gradient(const reverse_call *c, const reverse_direction *v, int64_t from, int64_t to) {
    const packing *W = &c->shape.W;
    const int f = c->shape.cell.shape.input, add = c->layer->directions == 2;
    const split tiles = tiles_of(W, to - from);
    for (int64_t j = 0; j < W->panels && !skips(c->job, c->worker, to - from, W->K, TILE_VECS * VL); ++j) {
        const int vecs = panel_vectors(W, j);
        const int64_t column = first_vector(W, j) * VL, n = W->units - column;
        const real *panel = v->packed + c->shape.W_at + packed_panel(W, j);
        for (int64_t i = 0; i < tiles.parts; ++i) {
            const int64_t m = from + split_at(&tiles, i);
            const int height = (int)(from + split_at(&tiles, i + 1) - m);
            const real *rows[TILE_ROWS];
            real *out[TILE_ROWS];
            lines_ahead ahead;
            ahead.at_once = ahead.count = 0;
            for (int r = 0; r < height; ++r) {
                rows[r] = v->chunk.delta + (m + r) * c->shape.step;
                out[r] = v->chunk.dx[m + r] + column;
                ask_ahead(&ahead, out[r], vecs * VL);
            }
            if (f == IDENTITY) {
                put_product(height, vecs, W->K, W->slice, rows, 1, panel, NULL, out, n, add, &ahead);
                continue;
            }
            _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
            tile_product(height, vecs, W->K, W->slice, rows, 1, panel, zeros, 0, tile, vecs * VL, &ahead);
            for (int r = 0; r < height; ++r) {
                real *row = tile + r * vecs * VL;
                for (int u = 0; u < vecs; ++u) {
                    const vec x = v_load(v->chunk.x[m + r] + column + u * VL);
                    v_store(row + u * VL, activation_gradient(f, x, v_load(row + u * VL)));
                }
                put_tile(row, 1, vecs, out[r], 0, n, add);
            }
        }
    }
}

/* All products over the chunk's `count` rows, shared out to all workers; and the deltas of the chunk's last step,
 * `last` rows, put by for the next one. */
static void reverse_products(const reverse_call *c, int d, const reverse_direction *v, int64_t count, int64_t last) {
    const reverse_shape *f = &c->shape;
    const int id = c->worker->id, size = c->worker->size;
    row_sum sums[ROW_SUMS];
    int64_t items = 0, before = 0;
    const int n = c->sums ? row_sums_of(c, v, &c->sums[d], sums) : 0;
    for (int i = 0; i < n; ++i) items += row_sum_items(&sums[i]);
    const int64_t from = part(id, size, items), to = part(id + 1, size, items);
    for (int64_t k = 0; c->sums && (k == 0 || k < count); k += BLOCK_ROWS, before = 0) {
        const int64_t rows = least(BLOCK_ROWS, count - k);
        const real *delta = v->chunk.delta + k * f->step;
        const int add = k > 0 || !c->first;
        if (skips(c->job, c->worker, rows, f->columns, c->layer->input_size + c->layer->output_size)) return;
        for (int i = 0; i < n; before += row_sum_items(&sums[i++])) {
            row_sum block = sums[i];
            block.rows += k;
            sum_over_rows(c, delta, &block, rows, add, most(from - before, 0),
                          least(to - before, row_sum_items(&block)));
        }
        sum_biases(c, delta, v->chunk.before + k, v->chunk.kept + k, rows, add, &c->sums[d]);
    }
    if (c->args->dx.data) input_gradient(c, v, part(id, size, count), part(id + 1, size, count));
    if (skips(c->job, c->worker, last, f->columns, c->layer->output_size)) return;
    for (int64_t p = part(id, size, last); p < part(id + 1, size, last); ++p) {
        memcpy(v->carry + p * f->step, v->chunk.delta + (count - last + p) * f->step,
               (size_t)f->columns * sizeof(real));
    }
}
