/* What the forward loop does at a step, or for all steps of a chunk at once: tile by tile a product, and then the
 * cell's equations. */

INLINE forward_point point_of(const forward_call *c, int stage) {
    const forward_shape *f = c->shape;
    forward_point p = {
        .stage = stage, .keep = c->keep, .streams = c->streams, .kept_step = f->kept_step, .a_step = f->step};
    p.p = c->packed + f->p;
    p.p_step = f->p_step;
    return p;
}

/* Panel j of a stage's products. */
INLINE void take_panel(forward_point *p, const packing *panels, int64_t j) {
    p->vecs = panel_vectors(panels, j);
    p->a_column = panel_units(panels, j);
    p->unit = first_vector(panels, j) * VL;
    p->n = panels->units - p->unit;
}

/* Rows [row, end) of a step as a tile of the stage, their pre-activations at a. */
INLINE void take_tile(const forward_call *c, forward_point *p, int64_t row, int64_t end, const real *a) {
    const int projects = c->shape->projected && p->stage == 0;
    p->rows = (int)(end - row);
    p->a = a;
    p->h = (const real *const *)c->h + row;
    p->c = (const real *const *)c->c + row;
    p->record = c->record + row;
    p->y = projects ? p->record : c->now_y + row; /* what is to be projected is a column of the record */
    if (c->tangents) {
        p->at = (recorded_rows){(const real *const *)c->at[0] + row, (const real *const *)c->at[1] + row,
                                (const real *const *)c->at[2] + row, (const real *const *)c->at[3] + row};
    }
}

/* What follows a tile's product. */
INLINE void finish_tile(const forward_call *c, const forward_point *p) {
    if (p->stage == 1 && c->shape->projected) {
        project_forward(p);
    } else if (c->tangents) {
        c->shape->cell.tangent(p);
    } else {
        c->shape->cell.forward(p);
    }
}

/* One stage of step t for `rows` rows, those of the worker's first sequences, from their input products a; what its
 * weights multiply begins `at` from `source`, row by row. */
static void forward_stage_step(const forward_call *c, int i, int64_t t, int64_t rows, real *a, real *const *source,
                               int64_t at) {
    const forward_shape *f = c->shape;
    const forward_stage *stage = &f->stage[i];
    const packing *p = &stage->h;
    const split tiles = tiles_of(p, rows);
    /* Asked once: in the loop it takes 1 % more instructions with one sequence. Where a step has few rows it is the
     * stream of weights that takes time, and to ask for other lines beside it slows it. */
    const int far = p->far, fetches = far && rows >= ROWS_ENOUGH;
    const int64_t K = t < c->begin && i == 0 ? 0 : p->K;
    forward_point point = point_of(c, i);
    const int continues = stage->x.gates > 0; /* the input product, or is this product all there is? */
    const real *packed = c->packed + stage->R;
    const int64_t init_step = continues ? f->step : 0;
    const double macs = (double)rows * (double)p->K * (TILE_VECS * VL);
    point.y_at = f->projected && i == 0 ? f->second * f->kept_step : 0;
    const int asks = takes_long(macs);
    for (int64_t n = c->from[i]; n < c->to[i] && !(asks && poll(c->job, c->worker, macs)); ++n) {
        const int64_t j = to_and_fro(n, c->from[i], c->to[i], t);
        const int64_t column = stage->column + packed_column(p, j);
        const int vecs = column_vectors(p, j, p->gates);
        take_panel(&point, p, j);
        for (int64_t m = 0; m < tiles.parts; ++m) {
            const int64_t row = split_at(&tiles, m);
            real *tile = a + row * f->step + column;
            take_tile(c, &point, row, split_at(&tiles, m + 1), tile);
            real *out = tile + stage->h_first * point.a_column;
            const real *from[TILE_ROWS];
            for (int r = 0; r < point.rows; ++r) from[r] = source[row + r] + at;
            lines_ahead ahead;
            ahead.count = 0;
            for (int r = 0; far && r < point.rows; ++r) fetch_ahead(out + r * f->step, vecs * VL);
            if (fetches) ask_next_lines(p, packed, n, c->from[i], c->to[i], t, m, &ahead);
            tile_product(point.rows, vecs, K, p->slice, from, 1, packed + packed_panel(p, j), continues ? out : zeros,
                         init_step, out, f->step, fetches ? &ahead : NULL);
            finish_tile(c, &point);
            if (skips_tiles(c->job, c->worker, m, p)) return;
        }
    }
}

/* A tile of all steps taken at once: a = b + W x, and then the equations; or, where these are a sum and the rows of
 * h_{t-1} and h_t lie evenly, both by the kernel, in the same order. */
INLINE void at_once_tile(const forward_call *c, const forward_point *p, int vecs, int64_t K, const real *const *x,
                         const real *panel, const real *bias, real *a, lines_ahead *ahead) {
    const forward_shape *f = c->shape;
    const packing *W = &f->stage[0].h;
    int64_t h_step, y_step;
    if (f->cell.shape.running_sum && !W->far && W->K <= W->slice && p->n >= p->vecs * VL &&
        evenly(p->h, p->rows, &h_step) && evenly((const real *const *)p->y, p->rows, &y_step)) {
        biased_kernels[p->rows - 1][vecs - 1](K, x, panel, bias, p->h[0] + p->unit, h_step, p->y[0] + p->unit, y_step);
    } else {
        tile_product(p->rows, vecs, K, W->slice, x, 1, panel, bias, 0, a, f->step, ahead);
        finish_tile(c, p);
    }
}

/* All steps of a chunk, `rows` rows of x, the last of them step t, where no product ties one to the next. Workers that
 * share out the units share a, where each panel has columns of its own for one tile. */
APART void forward_at_once(const forward_call *c, int64_t t, int64_t rows, real *a, real *const *x) {
    const forward_shape *f = c->shape;
    const packing *W = &f->stage[0].h;
    const split tiles = tiles_of(W, rows);
    const real *packed = c->packed + f->stage[0].R, *biases = c->tangents ? c->zero : c->packed + f->stage[0].bias;
    const int64_t K = t < c->begin ? 0 : W->K, from = c->from[0], to = c->to[0];
    const int fetches = W->far && rows >= ROWS_ENOUGH;
    forward_point point = point_of(c, 0);
    for (int64_t n = from; n < to && !skips(c->job, c->worker, rows, W->K, TILE_VECS * VL); ++n) {
        const int64_t j = to_and_fro(n, from, to, t), column = packed_column(W, j);
        take_panel(&point, W, j);
        for (int64_t m = 0; m < tiles.parts; ++m) {
            const int64_t row = split_at(&tiles, m);
            lines_ahead ahead;
            ahead.count = 0;
            take_tile(c, &point, row, split_at(&tiles, m + 1), a + column);
            if (fetches) ask_next_lines(W, packed, n, from, to, t, m, &ahead);
            at_once_tile(c, &point, column_vectors(W, j, W->gates), K, (const real *const *)x + row,
                         packed + packed_panel(W, j), biases + column, a + column, &ahead);
            /* a chunk's rows together would take as long as memory does */
            copy_rows(&c->y_copy, (const real *const *)point.y, point.rows, point.unit,
                      least(point.n, point.vecs * VL));
            if (skips_tiles(c->job, c->worker, m, W)) return;
        }
    }
}
