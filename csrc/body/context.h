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
 * sums of the one before, from rows that lie where they are. The second direction looks the other way. In reverse the
 * rows are taken in shards, as those of recurrent layers, but in halves that may begin within a sequence. */

/* A row: a step of a sequence. */
typedef struct {
    int64_t sequence, t, length;
} place;

/* Where in the order of rows a worker is: at step t of position p. */
typedef struct {
    int64_t p, t;
} cursor;

static void skip_rows(const frnn_batch *batch, cursor *c, int64_t rows) {
    c->t += rows;
    while (c->t > 0 && c->t >= length_at(batch, c->p)) c->t -= length_at(batch, c->p++);
}

static cursor cursor_at(const frnn_batch *batch, int64_t row) {
    cursor c = {0, 0};
    skip_rows(batch, &c, row);
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
    return (real *)rows->data + sequence_start(rows, at->sequence) + t * rows->time_step + column;
}

/* Is the step `offset` on one of the sequence? Compared so that no sum can overflow. */
INLINE int inside(const place *at, int64_t offset) { return offset < at->length - at->t && offset >= -at->t; }

/* For each place its row `offset` steps on, or `outside`. */
static void shifted_rows(const frnn_rows *rows, const place *places, int64_t count, int64_t offset, int64_t column,
                         real *outside, real **out) {
    for (int64_t r = 0; r < count; ++r) {
        out[r] = inside(&places[r], offset) ? place_row(rows, &places[r], places[r].t + offset, column) : outside;
    }
}

INLINE int64_t offset_of(const frnn_layer *layer, int k, int d) { return d ? -layer->context[k] : layer->context[k]; }

typedef struct {
    packing W, V;         /* of one k: I -> H, and in reverse H -> I */
    int64_t rows;         /* of a chunk, the same for every instruction set, */
    int64_t reverse_rows; /* and in reverse */
    int64_t step;         /* from one row of deltas to the next */
} context_shape;

static context_shape context_shape_of(const frnn_layer *layer) {
    const int64_t I = layer->input_size, H = layer->hidden_size;
    context_shape f = {.W = packing_of(H, 1, 1, I), .V = chunk_packing_of(I, H)};
    f.rows = most(24, least(BLOCK_ROWS, 16384 / most(I, H)));
    f.reverse_rows = most(32, least(BLOCK_ROWS, CHUNK_MACS / (layer->contexts * I * H)));
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
    frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const context_shape f = context_shape_of(layer);
    const int block = 0;
    const int64_t I = layer->input_size, H = layer->hidden_size, width = packed_width(&f.W);
    for (int d = 0; d < layer->directions; ++d) {
        const frnn_weights *weights = &job->weights[d];
        real *packed = (real *)job->packed + (size_t)d * context_direction_size(layer, &f);
        for (int64_t j = 0; w->id == 0 && j < width; j += VL) {
            v_store(packed + j, weights->b_ih ? load_upto((real *)weights->b_ih + j, H - j) : v_set1(0));
        }
        packed += width;
        for (int k = 0; k < layer->contexts; ++k, packed += packed_size(&f.W)) {
            pack_weights(job, w, &f.W, (real *)weights->W + k * I, layer->contexts * I, &block, packed, NULL);
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
    const row_copy x_copy = copy_of(job->batch, &args->x, args->x_copy, I, STREAMED_X);
    const row_copy y_copy = copy_of(job->batch, &args->y, args->y_copy, layer->directions * H, STREAMED_Y);
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
                product_rows(job, w, &product, W, (const real *const *)rows, count, 0, f.W.panels, sums, &no_copy);
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
            copy_rows(&y_copy, (const real *const *)y, count, 0, H);
        }
        if (args->x_copy) shifted_rows(&args->x, places, count, 0, 0, NULL, rows);
        copy_rows(&x_copy, (const real *const *)rows, count, 0, I);
        poll(job, w, (double)count * (double)H * (double)I * layer->contexts * layer->directions);
    }
}

/* In reverse a direction's packed weights are V_k for each k, I units of H. */
static size_t context_reverse_packed_size(const frnn_layer *layer) {
    const context_shape f = context_shape_of(layer);
    return (size_t)(layer->directions * layer->contexts) * packed_size(&f.V) * sizeof(real);
}

static void context_reverse_pack(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const context_shape f = context_shape_of(layer);
    const int block = 0;
    const int64_t I = layer->input_size;
    real *packed = job->packed;
    for (int d = 0; d < layer->directions; ++d) {
        for (int k = 0; k < layer->contexts; ++k, packed += packed_size(&f.V)) {
            const real *W = (real *)job->weights[d].W + k * I;
            pack_blocks(job, w, &f.V, W, layer->contexts * I, &block, f.V.K, packed);
        }
    }
}

/* The deltas of consecutive rows, in the order in which chunks take them: those of a chunk and of the rows that its dx
 * reads besides, which lie up to `before` and `after`. Each is computed once. A view for one worker of what its gang
 * shares. */
typedef struct {
    real *delta; /* (capacity, step) */
    int64_t before, after, capacity;
    int64_t base, end; /* the first row that lies there, and the one after the last, */
    cursor at;         /* which is here */
} delta_window;

/* A direction's contexts reach as far as a sequence is long, at most. There is room for so many rows that each is moved
 * once at most. */
static delta_window window_of(const frnn_layer *layer, const frnn_batch *batch, int d, const context_shape *f) {
    const int64_t total = total_rows(batch), farthest = least(batch->T, total);
    delta_window v = {0};
    for (int k = 0; k < layer->contexts; ++k) {
        const int64_t offset = most(-farthest, least(farthest, offset_of(layer, k, d)));
        v.before = most(v.before, offset);
        v.after = most(v.after, -offset);
    }
    v.capacity = least(total, f->reverse_rows + 2 * (v.before + v.after));
    return v;
}

typedef struct {
    delta_window window[SHARDS][2]; /* for each gang and direction */
    frnn_weights sums[2];           /* of the second shard, for each direction */
    real *dx;                       /* for each worker (reverse_rows, width of V) */
    real *panels;                   /* for each worker, a packed panel of BLOCK_ROWS rows */
    real *outside;                  /* a row of zeros, to stand for inputs, deltas and sums */
    place *places;                  /* for each worker */
    real **rows[2];                 /* for each worker */
} context_reverse_space;

INLINE int64_t context_outside_width(const context_shape *f, const frnn_layer *layer) {
    return most(most(packed_width(&f->V), layer->input_size), layer->hidden_size);
}

static context_reverse_space context_reverse_space_of(const frnn_layer *layer, const frnn_batch *batch, int threads,
                                                      arena *a) {
    const context_shape f = context_shape_of(layer);
    const int shards = shards_of_rows(layer, total_rows(batch));
    context_reverse_space s = {0};
    for (int d = 0; d < layer->directions; ++d) {
        for (int i = 0; i < shards; ++i) {
            s.window[i][d] = window_of(layer, batch, d, &f);
            s.window[i][d].delta = take_reals(a, s.window[i][d].capacity * f.step);
        }
        if (shards > 1) take_sums(a, layer, &s.sums[d]);
    }
    s.dx = take_reals(a, threads * f.reverse_rows * packed_width(&f.V));
    s.panels = take_reals(a, (int64_t)threads * BLOCK_ROWS * TILE_VECS * VL);
    s.outside = take_reals(a, context_outside_width(&f, layer));
    s.places = take(a, (size_t)(threads * f.reverse_rows), sizeof(place));
    for (int i = 0; i < LENGTH(s.rows); ++i) s.rows[i] = take_rows(a, threads * f.reverse_rows);
    return s;
}

static size_t context_reverse_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    arena a = {0};
    context_reverse_space_of(layer, batch, threads, &a);
    return a.used;
}

/* What a worker needs for the chunks of a shard. */
typedef struct {
    reverse_call call;
    context_shape shape;
    int64_t total; /* rows */
    real *dx, *outside;
    place *places;
    real **rows[2];
} context_reverse_call;

/* Of the next rows up to `end`, whose deltas the window is to have, this worker's part. */
static void window_deltas(const context_reverse_call *c, const delta_window *v, int d, int64_t end) {
    const frnn_worker *w = c->call.worker;
    const frnn_backward_args *args = c->call.args;
    const int64_t H = c->call.layer->hidden_size, before = part(w->id, w->size, end - v->end);
    const int64_t own_end = v->end + part(w->id + 1, w->size, end - v->end);
    int64_t row = v->end + before, count;
    cursor at = v->at;
    skip_rows(c->call.batch, &at, before);
    for (; row < own_end; row += count) {
        count = least(c->shape.reverse_rows, own_end - row);
        next_places(c->call.batch, &at, count, c->places);
        shifted_rows(&args->record.y, c->places, count, 0, d * H, NULL, c->rows[0]);
        if (args->dy.data) shifted_rows(&args->dy, c->places, count, 0, d * H, NULL, c->rows[1]);
        for (int64_t r = 0; r < count; ++r) {
            real *delta = v->delta + (row + r - v->base) * c->shape.step;
            reverse_point point = {.rows = 1, .vecs = (int)divide_up(H, VL), .n = H, .H = H, .delta = &delta};
            point.at.y = (const real *const *)c->rows[0] + r;
            point.dy = args->dy.data ? (const real *const *)c->rows[1] + r : NULL;
            c->call.shape.cell.backward(NULL, &point);
        }
    }
}

/* Moves the window on to the rows of a chunk. */
static void move_window(const context_reverse_call *c, delta_window *v, int d, int64_t row, int64_t count) {
    const frnn_worker *w = c->call.worker;
    const int64_t first = most(0, row - v->before), end = least(c->total, row + count + v->after);
    if (v->end <= first) {
        v->base = v->end = first;
        v->at = cursor_at(c->call.batch, first);
    }
    if (end - v->base > v->capacity) {
        if (w->id == 0) {
            memmove(v->delta, v->delta + (first - v->base) * c->shape.step,
                    (size_t)((v->end - first) * c->shape.step) * sizeof(real));
        }
        v->base = first;
        frnn_barrier(w->group, w->size);
    }
    window_deltas(c, v, d, end);
    if (end > v->end) skip_rows(c->call.batch, &v->at, end - v->end);
    v->end = most(v->end, end);
    frnn_barrier(w->group, w->size);
}

/* dx of this worker's part of a chunk. */
static void context_input_gradient(const context_reverse_call *c, const delta_window *v, int d, int64_t row,
                                   int64_t count) {
    const frnn_worker *w = c->call.worker;
    const frnn_layer *layer = c->call.layer;
    const context_shape *f = &c->shape;
    const int64_t from = part(w->id, w->size, count), own = part(w->id + 1, w->size, count) - from;
    const int64_t width = packed_width(&f->V);
    const place *places = c->places + from;
    const real *V = (const real *)c->call.args->packed + (size_t)(d * layer->contexts) * packed_size(&f->V);
    for (int k = 0; k < layer->contexts; ++k, V += packed_size(&f->V)) {
        const int64_t offset = offset_of(layer, k, d);
        const real **rows = (const real **)c->rows[0];
        for (int64_t r = 0; r < own; ++r) {
            rows[r] =
                inside(&places[r], -offset) ? v->delta + (row + from + r - offset - v->base) * f->step : c->outside;
        }
        const product_sums sums = {k ? c->dx : c->outside, k ? width : 0, c->dx, width};
        product_rows(c->call.job, w, &f->V, V, rows, own, 0, f->V.panels, sums, &no_copy);
    }
    shifted_rows(&c->call.args->dx, places, own, 0, 0, NULL, c->rows[0]);
    for (int64_t r = 0; r < own; ++r) {
        put_tile(c->dx + r * width, 1, (int)(width / VL), c->rows[0][r], 0, layer->input_size, layer->directions == 2);
    }
}

/* The gradients of the weights from a chunk, its items shared out to all workers. */
static void context_sums(const context_reverse_call *c, const delta_window *v, int d, int64_t row, int64_t count) {
    const reverse_call *call = &c->call;
    const frnn_worker *w = call->worker;
    const frnn_layer *layer = call->layer;
    const frnn_weights *out = &call->sums[d];
    const int64_t I = layer->input_size, H = layer->hidden_size;
    const real *delta = v->delta + (row - v->base) * c->shape.step;
    const int block = 0;
    for (int k = 0; k < layer->contexts; ++k) {
        shifted_rows(&call->args->record.x, c->places, count, offset_of(layer, k, d), 0, c->outside, c->rows[0]);
        const row_sum sum = {packing_of(I, 1, 1, 0), 0, H, H, 0, &block, c->rows[0], (real *)out->W + k * I,
                             layer->contexts * I};
        const int64_t items = row_sum_items(&sum);
        sum_over_rows(call, delta, &sum, count, !call->first, part(w->id, w->size, items),
                      part(w->id + 1, w->size, items));
    }
    sum_biases(call, delta, NULL, NULL, count, !call->first, out);
}

/* The rows [row, end) chunk by chunk: once at least, for without any row the gradients are zero. */
static void context_reverse_shard(context_reverse_call *c, delta_window window[], int64_t row, int64_t end) {
    frnn_job *job = c->call.job;
    const frnn_worker *w = c->call.worker;
    const frnn_layer *layer = c->call.layer;
    cursor at = cursor_at(c->call.batch, row);
    int64_t count;
    do {
        count = least(c->shape.reverse_rows, end - row);
        const cursor begin = at;
        for (int d = 0; d < layer->directions; ++d) {
            move_window(c, &window[d], d, row, count);
            at = begin;
            next_places(c->call.batch, &at, count, c->places);
            context_input_gradient(c, &window[d], d, row, count);
            context_sums(c, &window[d], d, row, count);
        }
        poll(job, w,
             2.0 * (double)count * (double)layer->hidden_size * (double)layer->input_size * layer->contexts *
                 layer->directions);
        if (leave(job, w->group, w->id, w->size)) return;
        c->call.first = 0;
        row += count;
    } while (row < end);
}

static void context_reverse_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_layer *layer = job->layer;
    const frnn_backward_args *args = job->args;
    const context_shape f = context_shape_of(layer);
    const int64_t total = total_rows(job->batch), width = packed_width(&f.V);
    const int shards = shards_of_rows(layer, total);
    const gang_member own = member_of(w, shards);
    arena a = {.base = args->workspace};
    context_reverse_space s = context_reverse_space_of(layer, job->batch, job->threads, &a);
    real *panel = s.panels + (int64_t)w->id * BLOCK_ROWS * TILE_VECS * VL;
    context_reverse_call c = {
        .call = {job, args, layer, job->batch, &own.worker, .panel = panel}, .shape = f, .total = total};
    c.call.shape.cell = cell_of(layer->cell);
    c.call.shape.step = f.step;
    c.dx = s.dx + w->id * f.reverse_rows * width;
    c.outside = s.outside;
    c.places = s.places + w->id * f.reverse_rows;
    for (int i = 0; i < LENGTH(c.rows); ++i) c.rows[i] = s.rows[i] + w->id * f.reverse_rows;
    if (w->id == 0) memset(s.outside, 0, (size_t)context_outside_width(&f, layer) * sizeof(real));
    frnn_barrier(w->group, w->size);
    for (int i = own.gang; i < shards; i += own.gangs) {
        c.call.sums = sums_of(layer, args->gradients, s.sums, i);
        c.call.first = i > 0 || !args->add;
        context_reverse_shard(&c, s.window[own.gang], part(i, shards, total), part(i + 1, shards, total));
    }
    frnn_barrier(w->group, w->size);
    if (shards > 1 && !atomic_load(&job->stopped)) add_sums(job, w, s.sums);
}
