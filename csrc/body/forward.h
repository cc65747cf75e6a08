/* The forward loop. For a chunk of time steps the input product a = b + W x is taken as one product; then step by step
 * each tile continues a with R h_{t-1} and goes through the cell's equations, which store h_t in its row of y.
 *
 * Since a chunk of x is read before its rows of y are written, y may be x. */

typedef struct {
    packing W, R;
    size_t W_size, R_size, direction_size;
} forward_weights;

static forward_weights forward_weights_of(const frnn_layer *layer) {
    const int gates = cells[layer->cell].gates;
    forward_weights f = {.W = packing_of(layer->hidden_size, gates, layer->input_size),
                         .R = packing_of(layer->hidden_size, gates, layer->hidden_size)};
    f.W_size = packed_size(&f.W);
    f.R_size = packed_size(&f.R);
    f.direction_size = (size_t)packed_width(&f.W) + f.W_size + f.R_size; /* bias, W, R */
    return f;
}

/* Rows of a chunk, unless one step has more: the chunk's pre-activations are to stay in the second-level cache. */
INLINE int64_t forward_rows(const forward_weights *f) { return most(24, least(256, 16384 / packed_width(&f->W))); }

typedef struct {
    real *a;       /* pre-activations of the chunks of all workers, (rows, width) */
    real **rows;   /* for each worker (forward_rows + B): a chunk's rows of x */
    real **x, **y; /* for each worker (B): first rows of x and y */
    real **h;      /* for each worker (2, B): rows of h_{t-1} and h_t */
} forward_space;

static forward_space forward_space_of(const frnn_layer *layer, const frnn_batch *batch, int threads, arena *a) {
    const forward_weights f = forward_weights_of(layer);
    const int64_t B = batch->B;
    forward_space s = {0};
    s.a = take_reals(a, (threads * forward_rows(&f) + layer->directions * B) * packed_width(&f.W));
    s.rows = take_rows(a, threads * (forward_rows(&f) + B));
    s.x = take_rows(a, threads * B);
    s.y = take_rows(a, threads * B);
    s.h = take_rows(a, 2 * threads * B);
    return s;
}

static size_t forward_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    arena a = {0};
    forward_space_of(layer, batch, threads, &a);
    return a.used;
}

static size_t forward_packed_size(const frnn_layer *layer) {
    return (size_t)layer->directions * forward_weights_of(layer).direction_size * sizeof(real);
}

static void forward_pack(void *argument, const frnn_worker *w) {
    const frnn_job *job = argument;
    const forward_weights f = forward_weights_of(job->layer);
    const int64_t from = part(w->id, w->size, f.W.panels), to = part(w->id + 1, w->size, f.W.panels);
    real *packed = job->packed;
    for (int d = 0; d < job->layer->directions; ++d, packed += f.direction_size) {
        const frnn_weights *weights = &job->weights[d];
        real *W = packed + packed_width(&f.W);
        pack_weights(&f.W, weights->W, W, from, to);
        pack_weights(&f.R, weights->R, W + f.W_size, from, to);
        if (w->id == 0) pack_biases(&f.W, weights->b_ih, weights->b_hh, packed);
    }
}

/* out = init + rows W for `count` rows and the panels [from, to), to where packed rows lie. */
static void product_rows(const packing *p, const real *panels, const real *const *rows, int64_t count, int64_t from,
                         int64_t to, const real *init, real *out) {
    const int64_t width = packed_width(p);
    const split tiles = tiles_of(count);
    for (int64_t i = 0; i < tiles.parts; ++i) {
        const int64_t row = split_at(&tiles, i), height = split_at(&tiles, i + 1) - row;
        const int64_t following = i + 1 < tiles.parts ? split_at(&tiles, i + 2) - row - height : 0;
        const split ahead = split_of(following, to - from); /* rows of the next tile to ask for beside each panel */
        for (int64_t j = from; j < to; ++j) {
            const int64_t column = packed_column(p, j);
            for (int64_t r = split_at(&ahead, j - from); r < split_at(&ahead, j - from + 1); ++r) {
                prefetch_row(rows[row + height + r], (int)divide_up(p->K, VL));
            }
            tile_kernels[height - 1][panel_vectors(p, j) * p->gates - 1](
                p->K, rows + row, 1, panels + column * p->K, init + column, 0, out + row * width + column, width);
        }
    }
}

/* One direction as one worker sees it: its sequences, its panels of units. */
typedef struct {
    const frnn_layer *layer;
    const cell_kernels *cell;
    const packing *packing; /* of R */
    const real *R;
    int64_t from, to;   /* panels */
    real **h, **next_h; /* for each of the worker's sequences, the rows of h_{t-1} and of h_t */
} forward_call;

/* h_t of the first `rows` of the worker's sequences, from the input product `init` (rows, width). */
static void forward_step(const forward_call *c, int64_t rows, const real *init) {
    const split tiles = tiles_of(rows);
    const int64_t H = c->layer->hidden_size, width = packed_width(c->packing);
    for (int64_t j = c->from; j < c->to; ++j) {
        const int64_t column = packed_column(c->packing, j), unit = first_vector(c->packing, j) * VL;
        const int units = panel_vectors(c->packing, j), vecs = units * c->cell->gates;
        for (int64_t i = 0; i < tiles.parts; ++i) {
            const int64_t row = split_at(&tiles, i);
            const int height = (int)(split_at(&tiles, i + 1) - row);
            const forward_point point = {height, units, unit, H - unit, c->next_h + row};
            _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
            for (int r = 0; r < height; ++r) prefetch_to_write(c->next_h[row + r] + unit, units);
            tile_kernels[height - 1][vecs - 1](H, (const real *const *)c->h + row, 1, c->R + column * H,
                                               init + row * width + column, width, tile, vecs * VL);
            c->cell->forward(tile, &point);
        }
    }
}

/* Copies columns [column, column + n) of rows that lie in `from` to the same places in `to`, if there is one. */
static void copy_rows(real *const *rows, int64_t count, const frnn_rows *from, void *to, int64_t column, int64_t n) {
    for (int64_t r = 0; to && r < count; ++r) {
        real *out = (real *)to + (rows[r] - (const real *)from->data);
        memcpy(out + column, rows[r] + column, (size_t)n * sizeof(real));
    }
}

static void forward_direction(frnn_job *job, const forward_space *space, const share *s, const frnn_worker *w, int d) {
    const frnn_layer *layer = job->layer;
    const frnn_batch *batch = job->batch;
    const frnn_forward_args *args = job->args;
    const forward_weights f = forward_weights_of(layer);
    const int64_t B = batch->B, H = layer->hidden_size, width = packed_width(&f.W), most_rows = forward_rows(&f);
    const real *bias = (const real *)args->packed + (size_t)d * f.direction_size, *W = bias + width;
    forward_call c = {.layer = layer, .cell = &cells[layer->cell], .packing = &f.R, .R = W + f.W_size};
    c.from = part(s->part, s->parts, f.R.panels);
    c.to = part(s->part + 1, s->parts, f.R.panels);
    const int64_t own_unit = first_vector(&f.R, c.from) * VL;
    const int64_t own_units = least(H, first_vector(&f.R, c.to) * VL) - own_unit;
    c.h = space->h + 2 * w->id * B;
    c.next_h = c.h + B;

    /* A worker with sequences of its own has a chunk of its own; a gang that splits the units shares one. */
    const int64_t leader = w->id - s->part;
    real *a = space->a + (leader * most_rows + (s->parts > 1 ? s->first_direction * B : s->first)) * width;
    real **chunk_rows = space->rows + w->id * (most_rows + B);
    const sequences x = sequences_of(batch, &args->x, d, 0, space->x + w->id * B, s->first, s->end);
    const sequences y = sequences_of(batch, &args->y, d, d * H, space->y + w->id * B, s->first, s->end);
    for (int64_t p = s->first; p < s->end; ++p) {
        c.h[p - s->first] = (real *)args->h0 + (d * B + sequence_at(batch, p)) * H;
    }

    double macs = 0;
    int64_t active = active_after(batch, s->end, 0);
    for (int64_t t = 0, end; active > s->first; t = end) {
        int64_t count = 0, now = active;
        for (end = t; now > s->first && (end == t || count + now - s->first <= most_rows);) {
            for (int64_t p = s->first; p < now; ++p) chunk_rows[count++] = row_at(&x, p, end);
            now = active_after(batch, now, ++end);
        }
        product_rows(&f.W, W, (const real *const *)chunk_rows, count, c.from, c.to, bias, a);
        if (s->part == 0 && d == 0) copy_rows(chunk_rows, count, &args->x, args->x_copy, 0, layer->input_size);
        macs += (double)count * (double)width * (double)(layer->input_size + H);
        poll(job, w, &macs);
        if (leave(job, s)) break;

        const real *init = a;
        for (int64_t step = t; step < end; ++step) {
            const int64_t rows = active - s->first;
            for (int64_t r = 0; r < rows; ++r) c.next_h[r] = row_at(&y, s->first + r, step);
            forward_step(&c, rows, init);
            copy_rows(c.next_h, rows, &args->y, args->y_copy, own_unit, own_units);
            for (int64_t r = 0; r < rows; ++r) c.h[r] = c.next_h[r];
            init += rows * width;
            active = active_after(batch, active, step + 1);
            frnn_barrier(s->group, s->parts);
        }
    }
    if (s->part == 0) {
        for (int64_t p = s->first; p < s->end; ++p) {
            real *out = (real *)args->hT + (d * B + sequence_at(batch, p)) * H;
            if (out != c.h[p - s->first]) memmove(out, c.h[p - s->first], (size_t)H * sizeof(real));
        }
    }
}

static void forward_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_forward_args *args = job->args;
    arena a = {.base = args->workspace};
    const forward_space space = forward_space_of(job->layer, job->batch, job->threads, &a);
    const share s = share_of(w, job->layer, job->batch, cells[job->layer->cell].gates);
    for (int d = s.first_direction; d < s.end_direction; ++d) forward_direction(job, &space, &s, w, d);
}
