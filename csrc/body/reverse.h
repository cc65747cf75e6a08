/* The reverse loop: back-propagation through time (Werbos, Proc. IEEE 78, 1990). Step by step, from the last one back,
 *
 *     dh_t = delta_{t+1} R + dy_t        delta_t = the cell's derivative of dh_t
 *
 * for a chunk of time; then, while the chunk's deltas are in cache, the products over all its rows
 *
 *     dx_t = delta_t W        dW += sum delta_t^T x_t        dR += sum delta_t^T h_{t-1}        db += sum delta_t
 *
 * The sums of one chunk are formed first and then added to the gradient (the first chunk's begin it): an order that
 * depends on the batch and the sizes alone, for chunks are cut by the number of rows. */

enum { BLOCK_ROWS = 256 }; /* rows that a sum over rows takes at a time */

typedef struct {
    packing R, W; /* delta -> dh, dx: K = G*H */
    packing h, x; /* sums over rows: the columns of h_{t-1}, of x */
    int64_t GH;
    int64_t rows; /* of a chunk, unless one step has more */
    int64_t step; /* from one row of deltas to the next */
} reverse_shape;

static reverse_shape reverse_shape_of(const frnn_layer *layer) {
    reverse_shape f = {.GH = cells[layer->cell].gates * layer->hidden_size};
    f.R = packing_of(layer->hidden_size, 1, f.GH);
    f.W = packing_of(layer->input_size, 1, f.GH);
    f.h = packing_of(layer->hidden_size, 1, 0);
    f.x = packing_of(layer->input_size, 1, 0);
    f.rows = most(32, least(BLOCK_ROWS, 131072 / f.GH));
    /* An odd number of cache lines, so that a column of deltas does not fall into few sets of a cache. */
    const int64_t line = 64 / (int64_t)sizeof(real);
    f.step = (divide_up(f.GH, line) | 1) * line;
    return f;
}

/* One direction's part of the workspace. */
typedef struct {
    const real *R, *W;                     /* packed weights */
    real *delta, *carry;                   /* a chunk's deltas, (rows, step); those of the step after it, (B, step) */
    real **x, **y, **dy, **dx, **h0;       /* (B,): first rows in reading order, and initial states */
    real **chunk_x, **chunk_h, **chunk_dx; /* for every row of the chunk */
} reverse_direction;

typedef struct {
    reverse_direction direction[2];
    real *panels;     /* for each worker, a packed panel of BLOCK_ROWS rows */
    real **step_rows; /* for each worker (3, B): its sequences' rows of h_t, dy_t, delta_t */
} reverse_space;

static reverse_space reverse_space_of(const frnn_layer *layer, const frnn_batch *batch, int threads, arena *a) {
    const reverse_shape f = reverse_shape_of(layer);
    const int64_t B = batch->B, rows = f.rows + B;
    reverse_space s = {0};
    for (int d = 0; d < layer->directions; ++d) {
        reverse_direction *v = &s.direction[d];
        v->delta = take_reals(a, rows * f.step);
        v->carry = take_reals(a, B * f.step);
        real ***by_sequence[] = {&v->x, &v->y, &v->dy, &v->dx, &v->h0};
        for (int i = 0; i < LENGTH(by_sequence); ++i) *by_sequence[i] = take_rows(a, B);
        real ***by_row[] = {&v->chunk_x, &v->chunk_h, &v->chunk_dx};
        for (int i = 0; i < LENGTH(by_row); ++i) *by_row[i] = take_rows(a, rows);
    }
    s.panels = take_reals(a, (int64_t)threads * BLOCK_ROWS * TILE_VECS * VL);
    s.step_rows = take_rows(a, 3 * threads * B);
    return s;
}

static size_t reverse_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    arena a = {0};
    reverse_space_of(layer, batch, threads, &a);
    return a.used;
}

/* A direction's packed weights are R, then W. */
static size_t reverse_direction_size(const reverse_shape *f) { return packed_size(&f->R) + packed_size(&f->W); }

static size_t reverse_packed_size(const frnn_layer *layer) {
    const reverse_shape f = reverse_shape_of(layer);
    return (size_t)layer->directions * reverse_direction_size(&f) * sizeof(real);
}

/* Packs the panels of one matrix that fall to this worker; returns where the next matrix goes. */
static real *pack_part(const packing *p, const real *matrix, const frnn_worker *w, real *packed) {
    for (int64_t j = part(w->id, w->size, p->panels); j < part(w->id + 1, w->size, p->panels); ++j) {
        pack_panel(p, matrix, NULL, p->K, j, packed + packed_column(p, j) * p->K);
    }
    return packed + packed_size(p);
}

static void reverse_pack(void *argument, const frnn_worker *w) {
    const frnn_job *job = argument;
    const reverse_shape f = reverse_shape_of(job->layer);
    real *packed = job->packed;
    for (int d = 0; d < job->layer->directions; ++d) {
        packed = pack_part(&f.R, job->weights[d].R, w, packed);
        packed = pack_part(&f.W, job->weights[d].W, w, packed);
    }
}

/* A call's values as one worker sees them. */
typedef struct {
    frnn_job *job;
    const frnn_backward_args *args;
    const frnn_layer *layer;
    const frnn_batch *batch;
    const frnn_worker *worker;
    reverse_shape shape;
    share share;
    real *panel;             /* of BLOCK_ROWS rows */
    real **h, **dy, **delta; /* for each position, the rows of the step at hand */
    int first;               /* is this the first chunk, whose sums begin the gradients? */
} reverse_call;

/* Finds the first rows: each worker those of some sequences. */
static void reverse_prepare(const reverse_call *c, int d, const reverse_direction *v) {
    const frnn_backward_args *args = c->args;
    const int id = c->worker->id, size = c->worker->size;
    const int64_t from = part(id, size, c->batch->B), to = part(id + 1, size, c->batch->B), H = c->layer->hidden_size;
    sequences_of(c->batch, &args->x, d, 0, v->x, from, to);
    sequences_of(c->batch, &args->y, d, d * H, v->y, from, to);
    sequences_of(c->batch, &args->dx, d, 0, v->dx, from, to);
    if (args->dy.data) sequences_of(c->batch, &args->dy, d, d * H, v->dy, from, to);
    for (int64_t p = from; p < to; ++p) {
        v->h0[p] = (real *)args->h0 + (d * c->batch->B + sequence_at(c->batch, p)) * H;
    }
}

INLINE int64_t time_step(const frnn_rows *rows, int d) { return d ? -rows->time_step : rows->time_step; }

/* Columns [unit, unit + n) of dJ/dhT into one row of a tile. */
INLINE void load_dhT(const reverse_call *c, int d, int64_t p, int64_t unit, int64_t n, int vecs, real *tile) {
    const real *dhT = c->args->dhT;
    if (dhT) dhT += (d * c->batch->B + sequence_at(c->batch, p)) * c->layer->hidden_size + unit;
    for (int u = 0; u < vecs; ++u) {
        const int64_t lanes_left = most(0, n - u * VL);
        v_store(tile + u * VL, dhT ? load_upto(dhT + u * VL, lanes_left) : v_set1(0));
    }
}

static const _Alignas(64) real zeros[TILE_VECS * VL];

/* dh for positions [p, p + height), panel j: what comes back from the following step, or, where there is none, from
 * outside. `following` are the deltas of the following step, row by position. */
INLINE void dh_tile(const reverse_call *c, int d, const reverse_direction *v, int64_t p, int height, int64_t j,
                    const real *following, real *tile) {
    const packing *R = &c->shape.R;
    const int vecs = panel_vectors(R, j);
    const int64_t unit = first_vector(R, j) * VL;
    if (following) {
        const real *rows[TILE_ROWS];
        for (int r = 0; r < height; ++r) rows[r] = following + (p + r) * c->shape.step;
        tile_kernels[height - 1][vecs - 1](R->K, rows, 1, v->R + packed_column(R, j) * R->K, zeros, 0, tile, vecs * VL);
    } else {
        for (int r = 0; r < height; ++r) load_dhT(c, d, p + r, unit, R->units - unit, vecs, tile + r * vecs * VL);
    }
}

/* delta_t of positions [from, to) and the worker's panels. */
static void reverse_step(const reverse_call *c, int d, const reverse_direction *v, int64_t from, int64_t to,
                         const real *following) {
    const cell_kernels *cell = &cells[c->layer->cell];
    const packing *R = &c->shape.R;
    const share *s = &c->share;
    const split tiles = tiles_of(to - from);
    for (int64_t j = part(s->part, s->parts, R->panels); j < part(s->part + 1, s->parts, R->panels); ++j) {
        const int64_t unit = first_vector(R, j) * VL;
        const int vecs = panel_vectors(R, j);
        for (int64_t i = 0; i < tiles.parts; ++i) {
            const int64_t p = from + split_at(&tiles, i);
            const int height = (int)(from + split_at(&tiles, i + 1) - p);
            const real *const *dy = c->args->dy.data ? (const real *const *)c->dy + p : NULL;
            const reverse_point point = {height, vecs,        unit, R->units - unit, (const real *const *)c->h + p,
                                         dy,     c->delta + p};
            _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
            for (int r = 0; r < height; ++r) {
                prefetch_row(point.h[r] + unit, vecs);
                if (dy) prefetch_row(dy[r] + unit, vecs);
            }
            dh_tile(c, d, v, p, height, j, following, tile);
            cell->backward(tile, &point);
        }
    }
}

/* The steps of a chunk, from t - 1 back. `following` positions were active at t, their deltas are in carry. Row by row,
 * in the order of the steps taken, the chunk's tables are filled for the products. */
static void reverse_steps(const reverse_call *c, int d, const reverse_direction *v, int64_t t, int64_t end,
                          int64_t following) {
    const frnn_backward_args *args = c->args;
    const share *s = &c->share;
    const int64_t x_step = time_step(&args->x, d), y_step = time_step(&args->y, d);
    const int64_t dx_step = time_step(&args->dx, d), dy_step = time_step(&args->dy, d);
    const real *next = v->carry;
    int64_t offset = 0;
    while (t-- > end) {
        const int64_t active = active_before(c->batch, following, t, c->batch->B);
        const int64_t own_end = most(s->first, least(active, s->end)),
                      own_following = most(s->first, least(following, own_end));
        for (int64_t p = s->first; p < own_end; ++p) {
            c->h[p] = v->y[p] + t * y_step;
            if (args->dy.data) c->dy[p] = v->dy[p] + t * dy_step;
            c->delta[p] = v->delta + (offset + p) * c->shape.step;
        }
        for (int64_t p = s->first; s->part == 0 && p < own_end; ++p) {
            v->chunk_x[offset + p] = v->x[p] + t * x_step;
            v->chunk_h[offset + p] = t > 0 ? c->h[p] - y_step : v->h0[p];
            v->chunk_dx[offset + p] = v->dx[p] + t * dx_step;
        }
        reverse_step(c, d, v, s->first, own_following, next);
        reverse_step(c, d, v, own_following, own_end, NULL);
        frnn_barrier(s->group, s->parts);
        next = v->delta + offset * c->shape.step;
        offset += active;
        following = active;
    }
}

/* out (G*H, units) += delta^T rows over the chunk, for items [from, to) of panels x tiles of G*H. */
static void sum_over_rows(const reverse_call *c, const real *delta, const packing *p, real *const *rows, int64_t count,
                          int64_t from, int64_t to, real *out) {
    const int64_t step = c->shape.step;
    const split tiles = tiles_of(c->shape.GH);
    for (int64_t item = from, next; item < to; item = next) {
        const int64_t j = item / tiles.parts;
        next = least(to, (j + 1) * tiles.parts);
        const int vecs = panel_vectors(p, j);
        const int64_t column = first_vector(p, j) * VL, n = p->units - column;
        for (int64_t k = 0; k == 0 || k < count; k += BLOCK_ROWS) {
            const int64_t K = least(BLOCK_ROWS, count - k);
            const split ahead = split_of(K, tiles.parts); /* rows of the next panel to ask for beside each tile */
            pack_panel(p, NULL, (const real *const *)rows + k, K, j, c->panel);
            for (int64_t i = item - j * tiles.parts; i < next - j * tiles.parts; ++i) {
                const int64_t g = split_at(&tiles, i);
                const int height = (int)(split_at(&tiles, i + 1) - g);
                _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
                const real *columns[TILE_ROWS];
                for (int r = 0; r < height; ++r) {
                    columns[r] = delta + k * step + g + r;
                    prefetch_to_write(out + (g + r) * p->units + column, vecs);
                }
                for (int64_t r = split_at(&ahead, i); n > vecs * VL && r < split_at(&ahead, i + 1); ++r) {
                    prefetch_row(rows[k + r] + column + vecs * VL, vecs);
                }
                tile_kernels[height - 1][vecs - 1](K, columns, step, c->panel, zeros, 0, tile, vecs * VL);
                put_tile(tile, height, vecs, out + g * p->units + column, p->units, n, k > 0 || !c->first);
            }
        }
    }
}

/* b += sum of delta over the chunk, for the vectors [from, to). */
static void sum_biases(const reverse_call *c, const real *delta, int64_t count, int64_t from, int64_t to,
                       const frnn_weights *out) {
    real *biases[] = {out->b_ih, out->b_hh};
    for (int64_t i = from; i < to; ++i) {
        const int64_t n = c->shape.GH - i * VL;
        for (int64_t k = 0; k == 0 || k < count; k += BLOCK_ROWS) {
            vec sum = v_set1(0);
            for (int64_t row = k; row < least(count, k + BLOCK_ROWS); ++row) {
                sum = v_add(sum, v_load(delta + row * c->shape.step + i * VL));
            }
            for (int b = 0; b < 2; ++b) {
                if (!biases[b]) continue;
                const vec before = k > 0 || !c->first ? load_upto(biases[b] + i * VL, n) : v_set1(0);
                store_upto(biases[b] + i * VL, v_add(before, sum), n);
            }
        }
    }
}

/* dx = delta W, or dx += where two directions share it, for the chunk's rows [from, to). */
static void input_gradient(const reverse_call *c, const reverse_direction *v, int64_t from, int64_t to) {
    const packing *W = &c->shape.W;
    const split tiles = tiles_of(to - from);
    for (int64_t i = 0; i < tiles.parts; ++i) {
        const int64_t m = from + split_at(&tiles, i);
        const int height = (int)(from + split_at(&tiles, i + 1) - m);
        const real *rows[TILE_ROWS];
        for (int r = 0; r < height; ++r) rows[r] = v->delta + (m + r) * c->shape.step;
        for (int64_t j = 0; j < W->panels; ++j) {
            _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
            const int vecs = panel_vectors(W, j);
            const int64_t column = first_vector(W, j) * VL;
            for (int r = 0; r < height; ++r) prefetch_to_write(v->chunk_dx[m + r] + column, vecs);
            tile_kernels[height - 1][vecs - 1](W->K, rows, 1, v->W + packed_column(W, j) * W->K, zeros, 0, tile,
                                               vecs * VL);
            for (int r = 0; r < height; ++r) {
                real *out = v->chunk_dx[m + r] + column;
                put_tile(tile + r * vecs * VL, 1, vecs, out, 0, W->units - column, c->layer->directions == 2);
            }
        }
    }
}

/* All products over the chunk's `count` rows, shared out to all workers; and the deltas of the chunk's last step, `last`
 * rows, put by for the next one. */
static void reverse_products(const reverse_call *c, int d, const reverse_direction *v, int64_t count, int64_t last) {
    const reverse_shape *f = &c->shape;
    const frnn_weights *out = &c->args->gradients[d];
    const int id = c->worker->id, size = c->worker->size;
    const int64_t x_items = f->x.panels * tiles_of(f->GH).parts;
    const int64_t items = x_items + f->h.panels * tiles_of(f->GH).parts;
    const int64_t from = part(id, size, items), to = part(id + 1, size, items);
    sum_over_rows(c, v->delta, &f->x, v->chunk_x, count, from, least(to, x_items), out->W);
    sum_over_rows(c, v->delta, &f->h, v->chunk_h, count, most(from - x_items, 0), to - x_items, out->R);
    const int64_t vectors = divide_up(f->GH, VL);
    sum_biases(c, v->delta, count, part(id, size, vectors), part(id + 1, size, vectors), out);
    input_gradient(c, v, part(id, size, count), part(id + 1, size, count));
    for (int64_t p = part(id, size, last); p < part(id + 1, size, last); ++p) {
        memcpy(v->carry + p * f->step, v->delta + (count - last + p) * f->step, (size_t)f->GH * sizeof(real));
    }
}

/* dh_0: what comes back from step 0 for its `active` positions, and dhT itself for sequences of length 0. */
static void initial_gradient(const reverse_call *c, int d, const reverse_direction *v, int64_t active) {
    const share *s = &c->share;
    const packing *R = &c->shape.R;
    for (int64_t p = s->first; p < s->end; ++p) {
        real *dh0 = (real *)c->args->dh0 + (d * c->batch->B + sequence_at(c->batch, p)) * R->units;
        for (int64_t j = part(s->part, s->parts, R->panels); j < part(s->part + 1, s->parts, R->panels); ++j) {
            _Alignas(64) real tile[TILE_VECS * VL];
            const int64_t unit = first_vector(R, j) * VL;
            dh_tile(c, d, v, p, 1, j, p < active ? v->carry : NULL, tile);
            put_tile(tile, 1, panel_vectors(R, j), dh0 + unit, 0, R->units - unit, 0);
        }
    }
}

static void reverse_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_batch *batch = job->batch;
    const frnn_backward_args *args = job->args;
    arena a = {.base = args->workspace};
    reverse_space space = reverse_space_of(job->layer, batch, job->threads, &a);
    reverse_direction *direction = space.direction;
    reverse_call c = {job, args, job->layer, batch, w, .shape = reverse_shape_of(job->layer)};
    c.share = share_of(w, job->layer, batch, cells[job->layer->cell].gates);
    c.panel = space.panels + (int64_t)w->id * BLOCK_ROWS * TILE_VECS * VL;
    c.h = space.step_rows + 3 * w->id * batch->B;
    c.dy = c.h + batch->B;
    c.delta = c.dy + batch->B;
    const int D = job->layer->directions;
    for (int d = 0; d < D; ++d) {
        direction[d].R = (const real *)args->packed + (size_t)d * reverse_direction_size(&c.shape);
        direction[d].W = direction[d].R + packed_size(&c.shape.R);
        reverse_prepare(&c, d, &direction[d]);
    }
    frnn_barrier(FRNN_ALL, w->size);

    double macs = 0;
    int64_t active = active_before(batch, 0, batch->T, batch->B);
    int64_t t = batch->B > 0 ? batch->T : 0, begin;
    c.first = 1;
    do { /* once at least: without any step the gradients are zero */
        int64_t count = 0, following = active, last = 0;
        for (begin = t; begin > 0; --begin) {
            const int64_t now = active_before(batch, active, begin - 1, batch->B);
            if (count > 0 && count + now > c.shape.rows) break;
            count += last = active = now;
        }
        for (int d = c.share.first_direction; d < c.share.end_direction; ++d) {
            reverse_steps(&c, d, &direction[d], t, begin, following);
        }
        frnn_barrier(FRNN_ALL, w->size);
        for (int d = 0; d < D; ++d) {
            reverse_products(&c, d, &direction[d], count, last);
            if (d + 1 < D) frnn_barrier(FRNN_ALL, w->size);
        }
        macs +=
            2.0 * D * (double)count * (double)c.shape.GH * (double)(job->layer->input_size + job->layer->hidden_size);
        poll(job, w, &macs);
        frnn_barrier(FRNN_ALL, w->size);
        if (atomic_load(&job->stopped)) return;
        c.first = 0;
        t = begin;
    } while (t > 0);
    for (int d = c.share.first_direction; d < c.share.end_direction; ++d)
        initial_gradient(&c, d, &direction[d], active);
}
