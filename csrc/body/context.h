/* Layers without recurrence, whose outputs read their inputs at several steps (the context):
 *
 *     a_t = b + sum over k of W_k x_{t + context[k]}        y_t = f(a_t)        zeros outside a sequence
 *
 * and in reverse
 *
 *     delta_t = dy_t f'(a_t)        dx_s = sum over k of delta_{s - context[k]} W_k
 *     dW_k = sum delta_t^T x_{t + context[k]}
 *
 * All steps are independent: rows are taken in chunks, sequence by sequence, and for each k the product continues the
 * sums of the one before, from rows that lie where they are. The second direction looks the other way. Deltas are so
 * little work that they are computed anew for each k. */

/* A row: a step of a sequence. */
typedef struct {
    int64_t sequence, t, length;
} place;

/* Where in the order of rows a worker is: at step t of position p. */
typedef struct {
    int64_t p, t;
} cursor;

static cursor cursor_at(const frnn_batch *batch, int64_t row) {
    cursor c = {0, row};
    while (c.p < batch->B && c.t >= length_at(batch, c.p)) c.t -= length_at(batch, c.p++);
    return c;
}

static void next_places(const frnn_batch *batch, cursor *c, int64_t count, place *places) {
    for (int64_t r = 0; r < count; ++c->p, c->t = 0) {
        const int64_t length = length_at(batch, c->p);
        while (c->t < length && r < count) places[r++] = (place){sequence_at(batch, c->p), c->t++, length};
        if (r == count && c->t < length) return;
    }
}

INLINE real *place_row(const frnn_rows *rows, const place *at, int64_t t, int64_t column) {
    const int64_t start =
        rows->starts ? rows->starts[at->sequence] * rows->time_step : at->sequence * rows->sequence_step;
    return (real *)rows->data + start + t * rows->time_step + column;
}

/* For each place its row `offset` steps on, or `outside`. */
static void shifted_rows(const frnn_rows *rows, const place *places, int64_t count, int64_t offset, int64_t column,
                         real *outside, real **out) {
    for (int64_t r = 0; r < count; ++r) {
        const int64_t left = places[r].length - places[r].t; /* compared so that no sum can overflow */
        const int inside = offset < left && offset >= -places[r].t;
        out[r] = inside ? place_row(rows, &places[r], places[r].t + offset, column) : outside;
    }
}

INLINE int64_t offset_of(const frnn_layer *layer, int k, int d) { return d ? -layer->context[k] : layer->context[k]; }

typedef struct {
    packing W, V; /* of one k: I -> H, and in reverse H -> I */
    int64_t rows; /* of a chunk */
    int64_t step; /* from one row of deltas to the next */
} context_shape;

static context_shape context_shape_of(const frnn_layer *layer) {
    const int64_t I = layer->input_size, H = layer->hidden_size;
    context_shape f = {.W = packing_of(H, 1, 1, I), .V = packing_of(I, 1, 1, H)};
    f.rows = most(24, least(BLOCK_ROWS, 16384 / most(I, H))); /* the same for every instruction set */
    f.step = row_step(H);
    return f;
}

/* A direction's packed weights forward: the bias, then W_k for each k. */
static size_t context_direction_size(const frnn_layer *layer, const context_shape *f) {
    return (size_t)packed_width(&f->W) + (size_t)layer->contexts * packed_size(&f->W);
}

static size_t context_packed_size(const frnn_layer *layer) {
    const context_shape f = context_shape_of(layer);
    return (size_t)layer->directions * context_direction_size(layer, &f) * sizeof(real);
}

static void context_pack(void *argument, const frnn_worker *w) {
    const frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const context_shape f = context_shape_of(layer);
    const int block = 0;
    const int64_t I = layer->input_size, H = layer->hidden_size, width = packed_width(&f.W);
    for (int d = 0; d < layer->directions; ++d) {
        const frnn_weights *weights = &job->weights[d];
        real *packed = (real *)job->packed + (size_t)d * context_direction_size(layer, &f);
        for (int64_t j = 0; w->id == 0 && j < width; j += VL) {
            const int64_t n = most(0, least(VL, H - j));
            v_store(packed + j, weights->b_ih && n > 0 ? v_load_n((real *)weights->b_ih + j, n) : v_set1(0));
        }
        packed += width;
        for (int k = 0; k < layer->contexts; ++k, packed += packed_size(&f.W)) {
            pack_weights(&f.W, (real *)weights->W + k * I, layer->contexts * I, &block, packed,
                         part(w->id, w->size, f.W.panels), part(w->id + 1, w->size, f.W.panels), NULL);
        }
    }
}

/* For each worker. */
typedef struct {
    real *a, *outside; /* a chunk's pre-activations; a row of zeros, to stand for inputs and for the bias of tangents */
    place *places;
    real **rows, **y, **at_y;
} context_space;

INLINE int64_t outside_width(const context_shape *f, const frnn_layer *layer) {
    return most(packed_width(&f->W), layer->input_size);
}

static context_space context_space_of(const frnn_layer *layer, int threads, arena *a) {
    const context_shape f = context_shape_of(layer);
    context_space s = {0};
    s.a = take_reals(a, threads * f.rows * packed_width(&f.W));
    s.outside = take_reals(a, threads * outside_width(&f, layer));
    s.places = take(a, (size_t)(threads * f.rows), sizeof(place));
    s.rows = take_rows(a, threads * f.rows);
    s.y = take_rows(a, threads * f.rows);
    s.at_y = take_rows(a, threads * f.rows);
    return s;
}

static size_t context_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    (void)batch;
    arena a = {0};
    context_space_of(layer, threads, &a);
    return a.used;
}

static void context_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const frnn_forward_args *args = job->args;
    const frnn_record *record = job->record; /* if these are tangents */
    const context_shape f = context_shape_of(layer);
    const cell_kernels cell = cell_of(layer->cell);
    const int64_t I = layer->input_size, H = layer->hidden_size, width = packed_width(&f.W);
    arena arena_ = {.base = args->workspace};
    const context_space s = context_space_of(layer, job->threads, &arena_);
    real *a = s.a + w->id * f.rows * width, *outside = s.outside + w->id * outside_width(&f, layer);
    place *places = s.places + w->id * f.rows;
    real **rows = s.rows + w->id * f.rows, **y = s.y + w->id * f.rows, **at_y = s.at_y + w->id * f.rows;
    packing product = f.W;
    if (!args->x.data) product.K = 0;
    const int64_t total = total_rows(job->batch), end = part(w->id + 1, w->size, total);
    int64_t row = part(w->id, w->size, total), count;
    cursor at = cursor_at(job->batch, row);
    memset(outside, 0, (size_t)outside_width(&f, layer) * sizeof(real));
    for (; row < end && !atomic_load(&job->stopped); row += count) {
        count = least(f.rows, end - row);
        next_places(job->batch, &at, count, places);
        for (int d = 0; d < layer->directions; ++d) {
            const real *bias = (const real *)args->packed + (size_t)d * context_direction_size(layer, &f);
            const real *W = bias + width;
            const real *init = record ? outside : bias;
            for (int k = 0; k < layer->contexts; ++k, W += packed_size(&f.W)) {
                if (args->x.data) shifted_rows(&args->x, places, count, offset_of(layer, k, d), 0, outside, rows);
                const product_sums sums = {k ? a : init, k ? width : 0, a, width};
                product_rows(job, w, &product, W, (const real *const *)rows, count, 0, f.W.panels, sums);
            }
            shifted_rows(&args->y, places, count, 0, d * H, NULL, y);
            if (record) shifted_rows(&record->y, places, count, 0, d * H, NULL, at_y);
            for (int64_t j = 0; j < f.W.panels; ++j) {
                const int64_t unit = first_vector(&f.W, j) * VL;
                forward_point point = {.rows = (int)count, .vecs = panel_vectors(&f.W, j), .unit = unit, .n = H - unit};
                point.a = a + packed_column(&f.W, j);
                point.a_step = width;
                point.y = y;
                point.at.y = (const real *const *)at_y;
                (record ? cell.tangent : cell.forward)(&point);
            }
            copy_rows(job->batch, y, count, &args->y, args->y_copy, 0, H);
        }
        if (args->x_copy) shifted_rows(&args->x, places, count, 0, 0, NULL, rows);
        copy_rows(job->batch, rows, count, &args->x, args->x_copy, 0, I);
        poll(job, w, (double)count * (double)H * (double)I * layer->contexts * layer->directions);
    }
}

/* In reverse a direction's packed weights are V_k for each k, I units of H. */
static size_t context_reverse_packed_size(const frnn_layer *layer) {
    const context_shape f = context_shape_of(layer);
    return (size_t)(layer->directions * layer->contexts) * packed_size(&f.V) * sizeof(real);
}

static void context_reverse_pack(void *argument, const frnn_worker *w) {
    const frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const context_shape f = context_shape_of(layer);
    const int64_t I = layer->input_size;
    real *packed = job->packed;
    for (int d = 0; d < layer->directions; ++d) {
        for (int k = 0; k < layer->contexts; ++k, packed += packed_size(&f.V)) {
            for (int64_t j = part(w->id, w->size, f.V.panels); j < part(w->id + 1, w->size, f.V.panels); ++j) {
                pack_panel(&f.V, (real *)job->weights[d].W + k * I, NULL, layer->contexts * I, f.V.K, j,
                           packed + packed_panel(&f.V, j), streams(&f.V, packed));
            }
        }
    }
}

typedef struct {
    real *delta;    /* the chunk's, (rows, step) */
    real *shifted;  /* for each worker, those of other steps, (rows, step) */
    real *dx;       /* for each worker (rows, width of V) */
    real *panels;   /* for each worker, a packed panel of BLOCK_ROWS rows */
    real *outside;  /* a row of zeros, to stand for inputs, outputs and sums */
    place *places;  /* for each worker */
    real **rows[4]; /* for each worker */
} context_reverse_space;

static context_reverse_space context_reverse_space_of(const frnn_layer *layer, int threads, arena *a) {
    const context_shape f = context_shape_of(layer);
    context_reverse_space s = {0};
    s.delta = take_reals(a, f.rows * f.step);
    s.shifted = take_reals(a, threads * f.rows * f.step);
    s.dx = take_reals(a, threads * f.rows * packed_width(&f.V));
    s.panels = take_reals(a, (int64_t)threads * BLOCK_ROWS * TILE_VECS * VL);
    s.outside = take_reals(a, most(packed_width(&f.V), layer->hidden_size));
    s.places = take(a, (size_t)(threads * f.rows), sizeof(place));
    for (int i = 0; i < LENGTH(s.rows); ++i) s.rows[i] = take_rows(a, threads * f.rows);
    return s;
}

static size_t context_reverse_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    (void)batch;
    arena a = {0};
    context_reverse_space_of(layer, threads, &a);
    return a.used;
}

/* The deltas of the places [from, to), `offset` steps on; zero outside their sequences. */
static void shifted_deltas(const reverse_call *c, const context_shape *f, const place *places, int64_t from, int64_t to,
                           int64_t offset, int d, real **rows[4], real *outside, real *delta) {
    const frnn_backward_args *args = c->args;
    const int64_t H = c->layer->hidden_size, count = to - from;
    shifted_rows(&args->record.y, places + from, count, offset, d * H, outside, rows[0]);
    if (args->dy.data) shifted_rows(&args->dy, places + from, count, offset, d * H, outside, rows[1]);
    for (int64_t r = 0; r < count; ++r) rows[2][r] = delta + r * f->step;
    for (int64_t r = 0; r < count; ++r) {
        reverse_point point = {.rows = 1, .H = H};
        point.at.y = (const real *const *)rows[0] + r;
        point.dy = args->dy.data ? (const real *const *)rows[1] + r : NULL;
        point.delta = rows[2] + r;
        for (point.unit = 0; point.unit < H; point.unit += TILE_VECS * VL) {
            point.n = H - point.unit;
            point.vecs = (int)least(TILE_VECS, divide_up(point.n, VL));
            c->shape.cell.backward(zeros, &point);
        }
    }
}

static void context_reverse_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const frnn_backward_args *args = job->args;
    const context_shape f = context_shape_of(layer);
    const int64_t I = layer->input_size, H = layer->hidden_size, width = packed_width(&f.V);
    const int block = 0;
    arena a = {.base = args->workspace};
    const context_reverse_space s = context_reverse_space_of(layer, job->threads, &a);
    reverse_call c = {job,        args, layer,
                      job->batch, w,    .panel = s.panels + (int64_t)w->id * BLOCK_ROWS * TILE_VECS * VL};
    c.shape.cell = cell_of(layer->cell);
    c.shape.step = f.step;
    real *shifted = s.shifted + w->id * f.rows * f.step, *dx = s.dx + w->id * f.rows * width;
    place *places = s.places + w->id * f.rows;
    real **rows[4];
    for (int i = 0; i < LENGTH(rows); ++i) rows[i] = s.rows[i] + w->id * f.rows;
    if (w->id == 0) memset(s.outside, 0, (size_t)most(width, H) * sizeof(real));
    frnn_barrier(FRNN_ALL, w->size);

    const int64_t total = total_rows(job->batch);
    cursor at = {0, 0};
    int64_t row = 0, count;
    c.first = !args->add;
    do { /* once at least: without any row the gradients are zero */
        count = least(f.rows, total - row);
        next_places(job->batch, &at, count, places);
        const int64_t from = part(w->id, w->size, count), to = part(w->id + 1, w->size, count), own = to - from;
        for (int d = 0; d < layer->directions; ++d) {
            const frnn_weights *out = &args->gradients[d];
            const real *V = (const real *)args->packed + (size_t)(d * layer->contexts) * packed_size(&f.V);
            shifted_deltas(&c, &f, places, from, to, 0, d, rows, s.outside, s.delta + from * f.step);
            for (int k = 0; k < layer->contexts; ++k, V += packed_size(&f.V)) {
                shifted_deltas(&c, &f, places, from, to, -offset_of(layer, k, d), d, rows, s.outside, shifted);
                const product_sums sums = {k ? dx : s.outside, k ? width : 0, dx, width};
                product_rows(job, w, &f.V, V, (const real *const *)rows[2], own, 0, f.V.panels, sums);
            }
            shifted_rows(&args->dx, places + from, own, 0, 0, NULL, rows[3]);
            for (int64_t r = 0; r < own; ++r) {
                put_tile(dx + r * width, 1, (int)(width / VL), rows[3][r], 0, I, layer->directions == 2);
            }
            frnn_barrier(FRNN_ALL, w->size);
            for (int k = 0; k < layer->contexts; ++k) {
                shifted_rows(&args->record.x, places, count, offset_of(layer, k, d), 0, s.outside, rows[0]);
                const row_sum sum = {packing_of(I, 1, 1, 0), 0, H, H, 0, &block, rows[0], (real *)out->W + k * I,
                                     layer->contexts * I};
                const int64_t items = row_sum_items(&sum);
                sum_over_rows(&c, s.delta, &sum, count, !c.first, part(w->id, w->size, items),
                              part(w->id + 1, w->size, items));
            }
            sum_biases(&c, s.delta, NULL, NULL, count, !c.first, out);
            frnn_barrier(FRNN_ALL, w->size);
        }
        poll(job, w, 2.0 * (double)count * (double)H * (double)I * layer->contexts * layer->directions);
        if (leave(job, FRNN_ALL, w->id, w->size)) return;
        c.first = 0;
        row += count;
    } while (row < total);
}
