/* The forward loop. For a chunk of time steps the input product a = b + W x is taken as one product; then step by step
 * each tile continues a with R h_{t-1} and goes through the cell's equations, which store h_t in its row of y and what
 * is to be kept in its record. Some cells take a second stage for a step: a product of what the first one left in the
 * record.
 *
 * Since a chunk of x is read before its rows of y are written, y may be x.
 *
 * The same loop carries tangents: without the bias, and through the derivatives of the equations at what is
 * recorded. */

/* One stage of a step: some of the cell's columns. Places are counted in reals. */
typedef struct {
    packing x, h;       /* of the rows of x; of h_{t-1}, or of the record's column that the second stage takes */
    int first, h_first; /* the first of its columns, and of those, the first one of h */
    int64_t column;     /* where they begin in a row of pre-activations */
    int64_t bias, W, R; /* where its weights begin among a direction's packed ones, */
    int64_t zero_times; /* and zero times those of R, a vector for each panel */
} forward_stage;

typedef struct {
    cell_kernels cell;
    forward_stage stage[2];
    int stages, projected;
    int kept, second;  /* columns of the record; the one that the second stage takes */
    int64_t kept_step; /* from one of them to the next */
    int64_t width;     /* a row of pre-activations, */
    int64_t step;      /* and from one row to the next */
    int64_t p, p_step;
    int64_t size; /* a direction's packed weights */
} forward_shape;

static forward_shape forward_shape_of(const frnn_layer *layer) {
    const int64_t I = layer->input_size, H = layer->hidden_size, O = layer->output_size;
    forward_shape f = {.cell = cell_of(layer->cell), .stages = 1, .projected = O < H};
    const cell_shape *s = &f.cell.shape;
    const int first = s->second == NONE ? s->columns : s->h; /* columns of the first stage */
    f.stage[0] = (forward_stage){packing_of(H, first, (int)least(s->x, first), I), packing_of(H, first, s->h, O),
                                 .h_first = s->h_first};
    f.kept = s->kept + f.projected;
    f.kept_step = column_step(H);
    f.second = f.projected ? s->kept : s->second;
    if (f.second != NONE) {
        const int rest = s->columns - first;
        f.stages = 2;
        f.stage[1] = f.projected
                         ? (forward_stage){packing_of(O, 1, 0, 0), packing_of(O, 1, 1, H), .first = s->columns}
                         : (forward_stage){packing_of(H, rest, rest, I), packing_of(H, rest, rest, H), .first = first};
    }
    for (int i = 0; i < f.stages; ++i) {
        forward_stage *stage = &f.stage[i];
        stage->column = f.width;
        stage->bias = f.size;
        stage->W = stage->bias + packed_width(&stage->x);
        stage->R = stage->W + (int64_t)packed_size(&stage->x);
        f.width += packed_width(&stage->x);
        stage->zero_times = stage->R + (int64_t)packed_size(&stage->h);
        f.size = stage->zero_times + stage->h.panels * VL;
    }
    f.step = row_step(f.width);
    f.p = f.size;
    f.p_step = f.stage[0].h.vectors * VL;
    f.size += s->peephole ? 3 * f.p_step : 0;
    return f;
}

/* Rows of a chunk, unless one step has more: the chunk's pre-activations are to stay in the second-level cache; but
 * where W is far, to read it seldom counts for more. */
enum { LEAST_ROWS = 24, FAR_ROWS = 128 };
INLINE int64_t forward_rows(const forward_shape *f) {
    return most(f->stage[0].x.far ? FAR_ROWS : LEAST_ROWS, least(256, 65536 / f->width));
}

/* From one row to the next of inputs that have gone through the cell's function. */
INLINE int64_t mapped_step(const frnn_layer *layer, const cell_shape *s) {
    return s->input == IDENTITY ? 0 : divide_up(layer->input_size, VL) * VL;
}

typedef struct {
    real *a;                       /* pre-activations of the chunks of all workers, (rows, step) */
    real *mapped;                  /* for each worker (forward_rows + B, mapped_step) */
    real *record;                  /* for each direction (B, kept * kept_step): where nothing is kept for backward */
    real **rows;                   /* for each worker (forward_rows + B): a chunk's rows of x */
    real **x, **y, **kept;         /* for each worker (B): first rows */
    real **h, **c, **now_y, **now; /* for each worker (B): rows of h_{t-1}, c_{t-1}, y_t and of the step's record */
    real **at[4], **first_at[2];   /* for tangents the recorded y, h, c and record; first rows of y and record */
    real *zero;                    /* for each worker: a row that stands for a bias or a state */
    int64_t *order;                /* for each worker (B): that of its sequences */
} forward_space;

/* The length of that row. */
INLINE int64_t zero_width(const frnn_layer *layer, const forward_shape *f) {
    return most(f->width, divide_up(most(layer->hidden_size, layer->output_size), VL) * VL);
}

static forward_space forward_space_of(const frnn_layer *layer, const frnn_batch *batch, int threads, arena *a) {
    const forward_shape f = forward_shape_of(layer);
    const int64_t B = batch->B, rows = forward_rows(&f);
    forward_space s = {0};
    s.a = take_reals(a, (threads * rows + layer->directions * B) * f.step);
    s.mapped = take_reals(a, threads * (rows + B) * mapped_step(layer, &f.cell.shape));
    s.record = take_reals(a, layer->directions * B * f.kept * f.kept_step);
    s.rows = take_rows(a, threads * (rows + B));
    real ***by_sequence[] = {&s.x,     &s.y,     &s.kept,  &s.h,     &s.c,           &s.now_y,      &s.now,
                             &s.at[0], &s.at[1], &s.at[2], &s.at[3], &s.first_at[0], &s.first_at[1]};
    s.zero = take_reals(a, threads * zero_width(layer, &f));
    s.order = take(a, (size_t)(threads * B), sizeof(int64_t));
    for (int i = 0; i < LENGTH(by_sequence); ++i) *by_sequence[i] = take_rows(a, threads * B);
    return s;
}

static size_t forward_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    arena a = {0};
    forward_space_of(layer, batch, threads, &a);
    return a.used;
}

static size_t forward_packed_size(const frnn_layer *layer) {
    return (size_t)(layer->directions * forward_shape_of(layer).size) * sizeof(real);
}

/* The biases of a stage's columns, in the order of the panels: b_ih where W x is added, b_hh where R h is; and zero up
 * to the end of the row. */
static void pack_biases(const forward_stage *stage, const cell_shape *s, const frnn_weights *weights, real *packed) {
    const packing *p = &stage->x;
    memset(packed, 0, (size_t)packed_width(p) * sizeof(real));
    for (int64_t panel = 0; panel < p->panels; ++panel) {
        for (int g = 0; g < p->columns; ++g) {
            real *out = packed + packed_column(p, panel) + g * panel_units(p, panel);
            for (int64_t v = first_vector(p, panel); v < first_vector(p, panel + 1); ++v, out += VL) {
                const int column = stage->first + g;
                const int64_t n = least(VL, p->units - v * VL);
                vec sum = v_set1(0);
                if (column < s->columns) {
                    const int64_t unit = s->block[column] * p->units + v * VL;
                    if (weights->b_ih && column < s->x) sum = v_load_n((real *)weights->b_ih + unit, n);
                    if (weights->b_hh && s->h && column >= s->h_first) {
                        sum = v_add(sum, v_load_n((real *)weights->b_hh + unit, n));
                    }
                }
                v_store(out, sum);
            }
        }
    }
}

/* The packed weights of a direction: for each stage the bias, W and R (or P); then the peepholes. */
static void forward_pack(void *argument, const frnn_worker *w) {
    const frnn_job *job = argument;
    const forward_shape f = forward_shape_of(job->layer);
    const cell_shape *s = &f.cell.shape;
    const int64_t H = job->layer->hidden_size;
    for (int d = 0; d < job->layer->directions; ++d) {
        const frnn_weights *weights = &job->weights[d];
        real *packed = (real *)job->packed + d * f.size;
        for (int i = 0; i < f.stages; ++i) {
            const forward_stage *stage = &f.stage[i];
            const int project = f.projected && i == 1;
            const int64_t from = part(w->id, w->size, stage->x.panels), to = part(w->id + 1, w->size, stage->x.panels);
            const int *block = s->block + (project ? 0 : stage->first);
            pack_weights(&stage->x, weights->W, stage->x.K, block, packed + stage->W, from, to, NULL);
            pack_weights(&stage->h, project ? weights->P : weights->R, stage->h.K, block + stage->h_first,
                         packed + stage->R, from, to, packed + stage->zero_times);
            if (w->id == 0) pack_biases(stage, s, weights, packed + stage->bias);
        }
        if (s->peephole && w->id == 0) pack_peepholes(weights->p, H, f.p_step, packed + f.p);
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

/* One direction as one worker sees it: its sequences, its panels of units in each stage. */
typedef struct {
    frnn_job *job;
    const frnn_worker *worker;
    const forward_shape *shape;
    int64_t H, from[2], to[2];
    int keep, streams, tangents;
    int begins_with_zeros; /* are all products of R with the initial states zero? */
    const real *packed;
    real **h, **c, **y, **record; /* for each of the worker's sequences */
    real **at[4];                 /* for tangents the recorded y, h, c and record */
} forward_call;

/* One stage of step t for the first `rows` of the worker's sequences, from their input products a; `source` are the
 * rows that R multiplies. */
static void forward_stage_step(const forward_call *c, int i, int64_t t, int64_t rows, real *a, real *const *source,
                               int64_t at) {
    const forward_shape *f = c->shape;
    const forward_stage *stage = &f->stage[i];
    const packing *p = &stage->h;
    const split tiles = tiles_of(p, rows);
    /* Asked once: in the loop it takes 1 % more instructions with one sequence. Where a step has few rows it is the
     * stream of weights that takes time, and to ask for other lines beside it slows it. */
    const int far = p->far, fetches = far && rows >= ROWS_ENOUGH;
    const int64_t K = c->begins_with_zeros && t == 0 && i == 0 ? 0 : p->K;
    forward_point point = {
        .stage = i, .keep = c->keep, .streams = c->streams, .kept_step = f->kept_step, .a_step = f->step};
    point.p_step = f->p_step;
    point.p = c->packed + f->p;
    const int project_later = f->projected && i == 0;
    point.y_at = project_later ? f->second * f->kept_step : 0;
    for (int64_t n = c->from[i]; n < c->to[i] && !skips(c->job, c->worker, rows, p->K, TILE_VECS * VL); ++n) {
        const int64_t j = to_and_fro(n, c->from[i], c->to[i], t);
        const int64_t column = stage->column + packed_column(p, j);
        const int vecs = column_vectors(p, j, p->gates);
        point.vecs = panel_vectors(p, j);
        point.a_column = panel_units(p, j);
        point.unit = first_vector(p, j) * VL;
        point.n = p->units - point.unit;
        for (int64_t m = 0; m < tiles.parts; ++m) {
            const int64_t row = split_at(&tiles, m);
            real *tile = a + row * f->step + column;
            point.rows = (int)(split_at(&tiles, m + 1) - row);
            point.a = tile;
            point.h = (const real *const *)c->h + row;
            point.c = (const real *const *)c->c + row;
            point.record = c->record + row;
            point.y = project_later ? point.record : c->y + row; /* what is to be projected is a column of the record */
            if (c->tangents) {
                point.at = (recorded_rows){(const real *const *)c->at[0] + row, (const real *const *)c->at[1] + row,
                                           (const real *const *)c->at[2] + row, (const real *const *)c->at[3] + row};
            }
            if (vecs > 0) {
                real *out = tile + stage->h_first * point.a_column;
                const real *from[TILE_ROWS];
                for (int r = 0; r < point.rows; ++r) {
                    from[r] = source[row + r] + at;
                    fetch_ahead(point.y[r] + point.y_at + point.unit, point.vecs * VL);
                }
                for (int r = 0; far && r < point.rows; ++r) fetch_ahead(out + r * f->step, vecs * VL);
                const real *init = stage->x.gates > 0 ? out : zeros;
                tile_product(point.rows, vecs, K, p->slice, from, 1, c->packed + stage->R + packed_panel(p, j), init,
                             stage->x.gates > 0 ? f->step : 0, out, f->step,
                             fetches ? next_lines(p, c->packed + stage->R, n, c->from[i], c->to[i], t, m) : NULL);
            }
            if (i == 1 && f->projected) {
                project_forward(&point);
            } else if (c->tangents) {
                f->cell.tangent(&point);
            } else {
                f->cell.forward(&point);
            }
            if (skips_tiles(c->job, c->worker, m, p)) return;
        }
    }
}

/* Copies columns [column, column + n) of rows that lie in `from` to the same places in `to`, if there is one. */
static void copy_rows(const frnn_batch *batch, real *const *rows, int64_t count, const frnn_rows *from, void *to,
                      int64_t column, int64_t n) {
    const size_t bytes = (size_t)n * sizeof(real);
    const int large = bytes % LINE_BYTES == 0 && (double)batch->T * (double)batch->B * (double)bytes >= STREAMED_COPY;
    for (int64_t r = 0; to && r < count; ++r) {
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

/* The rows of what was recorded at step t, where the tangents are those of positions [first, first + rows). */
static void recorded_at(const forward_call *c, const frnn_record *record, const frnn_batch *batch, int d,
                        const sequences *y, const sequences *kept, int64_t first, int64_t rows, int64_t t) {
    const forward_shape *f = c->shape;
    const int64_t O = f->stage[f->stages - 1].h.units, at_c = f->cell.shape.c;
    for (int64_t r = 0; r < rows; ++r) {
        c->at[0][r] = row_at(y, first + r, t);
        c->at[1][r] = t > 0 ? c->at[0][r] - y->step : state_row(record->h0, batch->B, batch, d, first + r, O);
        if (f->kept) c->at[3][r] = row_at(kept, first + r, t);
        if (at_c == NONE) continue;
        c->at[2][r] = t > 0 ? c->at[3][r] - kept->step + at_c * f->kept_step
                            : state_row(record->c0, batch->B, batch, d, first + r, c->H);
    }
}

/* The batch with the last sequences of a worker, a tile of them, in an order without a constant stride: their rows of y
 * and of the record lie beside another worker's, and a prefetcher that follows a stride on takes lines that this one is
 * writing. Sequences are independent, and those of one length may stand in any order. */
static frnn_batch scattered(const frnn_batch *batch, const share *s, const packing *p, int64_t *order) {
    frnn_batch own = *batch;
    if (batch->lengths || s->rows_parts == 1) return own;
    const split tiles = tiles_of(p, s->end - s->first);
    const int64_t last = tiles.parts > 0 ? s->first + split_at(&tiles, tiles.parts - 1) : s->end;
    for (int64_t i = s->first; i < s->end; ++i) {
        const int64_t turn = i - last, half = (s->end - last + 1) / 2;
        order[i] = sequence_at(batch, turn < 0 ? i : last + (turn % 2 ? half : 0) + turn / 2);
    }
    own.order = order;
    return own;
}

/* Is the record, whose rows hold so many directions, to go past the caches? */
static int streams_record(const frnn_batch *batch, const frnn_rows *kept, const forward_shape *f, int directions) {
    const int64_t row = directions * f->kept * f->kept_step;
    const int lines = f->kept_step % LINE == 0 && kept->time_step % LINE == 0 && kept->sequence_step % LINE == 0;
    return sizeof(vec) == LINE_BYTES && lines && (uintptr_t)kept->data % LINE_BYTES == 0 && kept->data &&
           (double)total_rows(batch) * (double)row * sizeof(real) >= STREAMED_RECORD;
}

static int all_zero(const real *values, int64_t n) {
    int others = 0;
    for (int64_t i = 0; i < n; ++i) others |= values[i] != 0;
    return !others;
}

static void forward_direction(frnn_job *job, const frnn_batch *batch, const forward_space *space, const share *s,
                              const frnn_worker *w, int d) {
    const frnn_layer *layer = job->layer;
    const frnn_forward_args *args = job->args;
    const frnn_record *record = job->record;
    const forward_shape f = forward_shape_of(layer);
    const cell_shape *cell = &f.cell.shape;
    const int64_t B = batch->B, H = layer->hidden_size, O = layer->output_size, own = w->id * B;
    const int64_t most_rows = forward_rows(&f), input_step = mapped_step(layer, cell);
    const int64_t record_size = f.kept * f.kept_step;
    const int inputs = args->x.data != NULL; /* or they are tangents that are zero */
    forward_call c = {
        job, w, &f, H, .keep = args->kept.data != NULL, .packed = (const real *)args->packed + d * f.size};
    c.streams = streams_record(batch, &args->kept, &f, layer->directions);
    c.tangents = record != NULL;
    for (int i = 0; i < f.stages; ++i) {
        c.from[i] = first_panel(s, f.stage[i].h.panels);
        c.to[i] = end_panel(s, f.stage[i].h.panels);
    }
    const real *zero_times = c.packed + f.stage[0].zero_times;
    c.begins_with_zeros = all_zero(zero_times + c.from[0] * VL, (c.to[0] - c.from[0]) * VL);
    const packing *outputs = &f.stage[f.stages - 1].h;
    const int64_t own_unit = least(O, first_vector(outputs, c.from[f.stages - 1]) * VL);
    const int64_t own_units = least(O, first_vector(outputs, c.to[f.stages - 1]) * VL) - own_unit;
    c.h = space->h + own;
    c.c = space->c + own;
    c.record = space->now + own;
    c.y = space->now_y + own;

    /* A worker with sequences of its own has a chunk of its own; a gang that splits the units shares one. */
    const int64_t leader = w->id - s->part;
    real *a = space->a + (leader * most_rows + s->first_direction * B + s->first) * f.step;
    real **chunk_rows = space->rows + w->id * (most_rows + B);
    real *mapped = space->mapped + w->id * (most_rows + B) * input_step;
    real *zero = space->zero + w->id * zero_width(layer, &f);
    const sequences x = sequences_of(batch, inputs ? &args->x : &record->x, d, 0, space->x + own, s->first, s->end);
    const sequences y = sequences_of(batch, &args->y, d, d * O, space->y + own, s->first, s->end);
    sequences kept = {0};
    if (c.keep) kept = sequences_of(batch, &args->kept, d, d * record_size, space->kept + own, s->first, s->end);
    sequences recorded_y = {0}, recorded = {0};
    if (record) {
        memset(zero, 0, (size_t)zero_width(layer, &f) * sizeof(real));
        for (int i = 0; i < LENGTH(c.at); ++i) c.at[i] = space->at[i] + own;
        recorded_y = sequences_of(batch, &record->y, d, d * O, space->first_at[0] + own, s->first, s->end);
        if (f.kept) {
            recorded =
                sequences_of(batch, &record->kept, d, d * record_size, space->first_at[1] + own, s->first, s->end);
        }
    }
    for (int64_t p = s->first; p < s->end; ++p) {
        const int64_t r = p - s->first;
        c.h[r] = args->h0 ? state_row(args->h0, batch->B, batch, d, p, O) : zero;
        c.c[r] = args->c0 ? state_row(args->c0, batch->B, batch, d, p, H) : zero;
        c.begins_with_zeros = c.begins_with_zeros && (!args->h0 || all_zero(c.h[r], O));
        c.record[r] = space->record + (d * B + p) * record_size;
    }

    int64_t active = active_after(batch, s->end, 0);
    for (int64_t t = 0, end; active > s->first; t = end) {
        int64_t count = 0, now = active;
        for (end = t; now > s->first && (end == t || count + now - s->first <= most_rows);) {
            for (int64_t p = s->first; p < now; ++p) chunk_rows[count++] = row_at(&x, p, end);
            now = active_after(batch, now, ++end);
        }
        if (s->part == 0 && d == 0) copy_rows(batch, chunk_rows, count, &args->x, args->x_copy, 0, layer->input_size);
        if (input_step && !record) map_rows(cell->input, chunk_rows, count, layer->input_size, mapped, input_step);
        if (input_step && record && inputs) {
            map_tangents(cell->input, chunk_rows, count, layer->input_size, &args->x, &record->x, mapped, input_step);
        }
        for (int i = 0; i < f.stages; ++i) {
            const forward_stage *stage = &f.stage[i];
            packing W = stage->x;
            if (W.gates == 0) continue;
            if (!inputs) W.K = 0;
            const product_sums sums = {record ? zero : c.packed + stage->bias, 0, a + stage->column, f.step};
            product_rows(job, w, &W, c.packed + stage->W, (const real *const *)chunk_rows, count, c.from[i], c.to[i],
                         sums);
        }
        poll(job, w, (double)count * (double)f.width * (double)(layer->input_size + O));
        if (leave(job, s->group, s->part, s->parts)) return;

        real *step_a = a;
        for (int64_t step = t; step < end; ++step) {
            const int64_t rows = active - s->first;
            for (int64_t r = 0; r < rows; ++r) {
                c.y[r] = row_at(&y, s->first + r, step);
                if (c.keep) c.record[r] = row_at(&kept, s->first + r, step);
            }
            if (record) recorded_at(&c, record, batch, d, &recorded_y, &recorded, s->first, rows, step);
            const int stops = skips(job, w, rows, O, f.width);
            if (!stops) forward_stage_step(&c, 0, step, rows, step_a, c.h, 0);
            if (f.stages == 2) {
                frnn_barrier(s->group, s->parts);
                if (!stops) forward_stage_step(&c, 1, step, rows, step_a, c.record, f.second * f.kept_step);
            }
            copy_rows(batch, c.y, rows, &args->y, args->y_copy, own_unit, own_units);
            for (int64_t r = 0; r < rows; ++r) {
                c.h[r] = c.y[r];
                if (cell->c != NONE) c.c[r] = c.record[r] + cell->c * f.kept_step;
            }
            step_a += rows * f.step;
            active = active_after(batch, active, step + 1);
            frnn_barrier(s->group, s->parts);
        }
    }
    if (s->part > 0 || atomic_load(&job->stopped)) return;
    for (int64_t p = s->first; p < s->end; ++p) {
        const int64_t r = p - s->first;
        real *hT = state_row(args->hT, batch->B, batch, d, p, O), *cT = state_row(args->cT, batch->B, batch, d, p, H);
        if (hT && hT != c.h[r]) memmove(hT, c.h[r], (size_t)O * sizeof(real));
        if (cT && cT != c.c[r]) memmove(cT, c.c[r], (size_t)H * sizeof(real));
    }
}

static void forward_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_forward_args *args = job->args;
    arena a = {.base = args->workspace};
    const forward_space space = forward_space_of(job->layer, job->batch, job->threads, &a);
    const forward_shape f = forward_shape_of(job->layer);
    const share s = share_of(w, job->layer, job->batch, f.cell.shape.gates, &f.stage[0].h);
    const frnn_batch own = scattered(job->batch, &s, &f.stage[0].h, space.order + w->id * job->batch->B);
    for (int d = s.first_direction; d < s.end_direction; ++d) forward_direction(job, &own, &space, &s, w, d);
}
