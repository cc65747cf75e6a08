/* The forward loop. For a chunk of time steps the input product a = b + W x is taken as one product; then step by step
 * each tile continues a with R h_{t-1} and goes through the cell's equations, which store h_t in its row of y and what
 * is to be kept in its record. Some cells take a second stage for a step: a product of what the first one left in the
 * record.
 *
 * Where no product ties a step to the one before (a cell without R), all steps of a chunk are taken as one: tile by
 * tile W x, and then the equations, row after row in the order of time. Where these are a running sum and rows lie
 * evenly, the micro-kernel adds to h_{t-1} itself.
 *
 * Since a chunk of x is read, or put by, before its rows of y are written, y may be x.
 *
 * The same loop carries tangents: without the bias, and through the derivatives of the equations at what is
 * recorded. */

/* One stage of a step: some of the cell's columns. Places are counted in reals. */
typedef struct {
    /* Of the rows of x; and of h_{t-1}, or of the record's column that the second stage takes. For steps taken at once
     * the first is empty, and the second one that of x. */
    packing x, h;
    int first, h_first; /* the first of its columns, and of those, the first one of h */
    int64_t column;     /* where they begin in a row of pre-activations */
    int64_t bias, W, R; /* where its weights begin among a direction's packed ones, */
    int64_t zero_times; /* and zero times those of R, a vector for each panel */
} forward_stage;

typedef struct {
    cell_kernels cell;
    forward_stage stage[2];
    int stages, projected;
    int at_once;       /* no product ties a step to the one before: a chunk's steps are one, whose product is W x */
    int kept, second;  /* columns of the record; the one that the second stage takes */
    int64_t kept_step; /* from one of them to the next */
    int64_t width;     /* a row of pre-activations, */
    int64_t step;      /* and from one row to the next */
    int64_t p, p_step;
    int64_t size;       /* a direction's packed weights */
    int64_t input_step; /* from row to row of inputs that have gone through the cell's function, or are put by; or 0 */
} forward_shape;

static forward_shape forward_shape_of(const frnn_layer *layer) {
    const int64_t I = layer->input_size, H = layer->hidden_size, O = layer->output_size;
    forward_shape f = {.cell = cell_of(layer->cell), .stages = 1, .projected = O < H};
    const cell_shape *s = &f.cell.shape;
    const int first = s->second == NONE ? s->columns : s->h; /* columns of the first stage */
    const packing W = packing_of(H, first, (int)least(s->x, first), I);
    f.at_once = s->h == 0;
    f.stage[0] = (forward_stage){f.at_once ? packing_of(H, first, 0, 0) : W,
                                 f.at_once ? W : packing_of(H, first, s->h, O), .h_first = s->h_first};
    f.input_step = s->input == IDENTITY && !f.at_once ? 0 : divide_up(I, VL) * VL;
    f.kept = s->kept + f.projected;
    f.kept_step = column_step(H);
    f.second = f.projected ? s->kept : s->second;
    if (f.second != NONE) {
        const int rest = s->columns - first;
        f.stages = 2;
        f.stage[1] = f.projected
                         ? (forward_stage){packing_of(O, 1, 0, 0), packing_of(O, 1, 1, H), .first = 0}
                         : (forward_stage){packing_of(H, rest, rest, I), packing_of(H, rest, rest, H), .first = first};
    }
    for (int i = 0; i < f.stages; ++i) {
        forward_stage *stage = &f.stage[i];
        stage->column = f.width;
        stage->bias = f.size;
        stage->W = stage->bias + (f.projected && i == 1 ? 0 : packed_width(&stage->x)); /* P has no bias */
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

/* Rows of a chunk, unless one step has more: the chunk's pre-activations are to stay in the second-level cache (its
 * inputs, if it is taken at once); but where W is far, to read it seldom counts for more. */
enum { LEAST_ROWS = 24, FAR_ROWS = 128 };
INLINE int64_t forward_rows(const forward_shape *f) {
    const packing *W = f->at_once ? &f->stage[0].h : &f->stage[0].x;
    return most(W->far ? FAR_ROWS : LEAST_ROWS, least(256, 65536 / (f->at_once ? most(1, W->K) : f->width)));
}

typedef struct {
    real *a;                       /* pre-activations of the chunks of all workers, (rows, step) */
    real *mapped;                  /* for each worker (forward_rows + B, input_step) */
    real *record;                  /* for each direction (B, kept * kept_step): where nothing is kept for backward */
    real **rows;                   /* for each worker (forward_rows + B): a chunk's rows of x */
    real **x, **y, **kept;         /* for each worker (B): first rows, */
    real **first_at[2];            /* and, for tangents, of the recorded y and record */
    int64_t step_rows;             /* for each worker, of what is taken as one step: */
    real **h, **c, **now_y, **now; /* rows of h_{t-1}, c_{t-1}, y_t and of the step's record */
    real **at[4];                  /* for tangents the recorded y, h, c and record */
    real *zero;                    /* for each worker: a row that stands for a bias or a state */
    int64_t *order;                /* for each worker (B): that of its sequences */
} forward_space;

/* The length of that row. */
INLINE int64_t zero_width(const frnn_layer *layer, const forward_shape *f) {
    return most(f->width, state_width(layer));
}

static forward_space forward_space_of(const frnn_layer *layer, const frnn_batch *batch, int threads, arena *a) {
    const forward_shape f = forward_shape_of(layer);
    const int64_t B = batch->B, rows = forward_rows(&f);
    forward_space s = {0};
    s.a = take_reals(a, (threads * rows + layer->directions * B) * f.step);
    s.mapped = take_reals(a, threads * (rows + B) * f.input_step);
    s.record = take_reals(a, layer->directions * B * f.kept * f.kept_step);
    s.rows = take_rows(a, threads * (rows + B));
    real ***by_sequence[] = {&s.x, &s.y, &s.kept, &s.first_at[0], &s.first_at[1]};
    real ***by_row[] = {&s.h, &s.c, &s.now_y, &s.now, &s.at[0], &s.at[1], &s.at[2], &s.at[3]};
    s.zero = take_reals(a, threads * zero_width(layer, &f));
    s.order = take(a, (size_t)(threads * B), sizeof(int64_t));
    s.step_rows = f.at_once ? rows + B : B;
    for (int i = 0; i < LENGTH(by_sequence); ++i) *by_sequence[i] = take_rows(a, threads * B);
    for (int i = 0; i < LENGTH(by_row); ++i) *by_row[i] = take_rows(a, threads * s.step_rows);
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
                const int64_t n = least(VL, p->units - v * VL), unit = s->block[column] * p->units + v * VL;
                vec sum = v_set1(0);
                if (weights->b_ih && column < s->x) sum = v_load_n((real *)weights->b_ih + unit, n);
                if (weights->b_hh && s->h && column >= s->h_first) {
                    sum = v_add(sum, v_load_n((real *)weights->b_hh + unit, n));
                }
                v_store(out, sum);
            }
        }
    }
}

/* The packed weights of a direction: for each stage the bias, W and R, or P alone; then the peepholes. */
static void forward_pack(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const forward_shape f = forward_shape_of(job->layer);
    const cell_shape *s = &f.cell.shape;
    const int64_t H = job->layer->hidden_size;
    for (int d = 0; d < job->layer->directions; ++d) {
        const frnn_weights *weights = &job->weights[d];
        real *packed = (real *)job->packed + d * f.size;
        for (int i = 0; i < f.stages; ++i) {
            const forward_stage *stage = &f.stage[i];
            const int project = f.projected && i == 1;
            const int *block = s->block + stage->first;
            pack_weights(job, w, &stage->x, weights->W, stage->x.K, block, packed + stage->W, NULL);
            const void *h = project ? weights->P : f.at_once ? weights->W : weights->R;
            pack_weights(job, w, &stage->h, h, stage->h.K, block + stage->h_first, packed + stage->R,
                         packed + stage->zero_times);
            if (w->id == 0 && !project) pack_biases(stage, s, weights, packed + stage->bias);
        }
        if (s->peephole && w->id == 0) pack_peepholes(weights->p, H, f.p_step, packed + f.p);
    }
}

/* One direction as one worker sees it: its sequences, its panels of units in each stage. */
typedef struct {
    frnn_job *job;
    const frnn_batch *batch;
    const frnn_worker *worker;
    const forward_shape *shape;
    int d;
    int64_t H, first, from[2], to[2];
    int keep, streams, tangents;
    int64_t begin; /* the first step whose product is not zero in the first stage */
    const real *packed;
    real *zero; /* a row that stands for a bias or a state */
    row_copy x_copy, y_copy;
    int64_t unit, units; /* of y, those of its panels */
    sequences y, kept, recorded_y, recorded_kept;
    real **h, **c, **now_y, **record; /* for each of a step's rows */
    real **at[4];                     /* for tangents the recorded y, h, c and record */
} forward_call;

/* The initial state of position p from an array (D, B, n); NULL: zero. */
INLINE real *initial_row(const forward_call *c, const void *states, int64_t p, int64_t n) {
    return states ? state_row(states, c->batch->B, c->batch, c->d, p, n) : c->zero;
}

#include "steps.h"

/* The rows of what was recorded at step t, where the tangents are those of the worker's first `rows` sequences: into
 * the tables from row `to` on. */
static void take_recorded(const forward_call *c, int64_t rows, int64_t t, int64_t to) {
    const forward_shape *f = c->shape;
    const frnn_record *record = c->job->record;
    const int64_t O = c->job->layer->output_size, at_c = f->cell.shape.c;
    for (int64_t p = c->first; p < c->first + rows; ++p, ++to) {
        c->at[0][to] = row_at(&c->recorded_y, p, t);
        c->at[1][to] = t > 0 ? c->at[0][to] - c->recorded_y.step : initial_row(c, record->h0, p, O);
        if (f->kept) c->at[3][to] = row_at(&c->recorded_kept, p, t);
        if (at_c == NONE) continue;
        c->at[2][to] =
            t > 0 ? c->at[3][to] - c->recorded_kept.step + at_c * f->kept_step : initial_row(c, record->c0, p, c->H);
    }
}

/* The same for y and the record of these sequences. */
INLINE void take_step(const forward_call *c, int64_t rows, int64_t t, int64_t to) {
    for (int64_t r = 0; r < rows; ++r) {
        c->now_y[to + r] = row_at(&c->y, c->first + r, t);
        if (c->keep) {
            c->record[to + r] = row_at(&c->kept, c->first + r, t);
        } else if (to > 0) {
            c->record[to + r] = c->record[r];
        }
    }
    if (c->tangents) take_recorded(c, rows, t, to);
}

/* The states that rows [from, from + rows) leave are those before the ones from `to` on. */
INLINE void pass_states(const forward_call *c, int64_t from, int64_t rows, int64_t to) {
    const int64_t at_c = c->shape->cell.shape.c;
    for (int64_t r = 0; r < rows; ++r) {
        c->h[to + r] = c->now_y[from + r];
        if (at_c != NONE) c->c[to + r] = c->record[from + r] + at_c * c->shape->kept_step;
    }
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

/* What this worker needs for a direction. */
static forward_call forward_call_of(frnn_job *job, const frnn_batch *batch, const forward_space *space,
                                    const forward_shape *f, const share *s, const frnn_worker *w, int d) {
    const frnn_layer *layer = job->layer;
    const frnn_forward_args *args = job->args;
    const frnn_record *record = job->record;
    const int64_t B = batch->B, H = layer->hidden_size, O = layer->output_size, own = w->id * B;
    const int64_t own_rows = w->id * space->step_rows, record_size = f->kept * f->kept_step;
    forward_call c = {job, batch, w, f, d, H, s->first, .keep = args->kept.data != NULL, .tangents = record != NULL};
    c.packed = (const real *)args->packed + d * f->size;
    c.zero = space->zero + w->id * zero_width(layer, f);
    c.streams = streams_record(batch, &args->kept, f, layer->directions);
    c.x_copy = copy_of(batch, &args->x, s->part == 0 && d == 0 ? args->x_copy : NULL, layer->input_size, STREAMED_X);
    c.y_copy = copy_of(batch, &args->y, args->y_copy, layer->directions * O, STREAMED_Y);
    for (int i = 0; i < f->stages; ++i) {
        c.from[i] = first_panel(s, f->stage[i].h.panels);
        c.to[i] = end_panel(s, f->stage[i].h.panels);
    }
    const packing *outputs = &f->stage[f->stages - 1].h;
    c.unit = least(O, first_vector(outputs, c.from[f->stages - 1]) * VL);
    c.units = least(O, first_vector(outputs, c.to[f->stages - 1]) * VL) - c.unit;
    c.h = space->h + own_rows;
    c.c = space->c + own_rows;
    c.record = space->now + own_rows;
    c.now_y = space->now_y + own_rows;
    c.y = sequences_of(batch, &args->y, d, d * O, space->y + own, s->first, s->end);
    if (c.keep) c.kept = sequences_of(batch, &args->kept, d, d * record_size, space->kept + own, s->first, s->end);
    memset(c.zero, 0, (size_t)zero_width(layer, f) * sizeof(real));
    if (record) {
        for (int i = 0; i < LENGTH(c.at); ++i) c.at[i] = space->at[i] + own_rows;
        c.recorded_y = sequences_of(batch, &record->y, d, d * O, space->first_at[0] + own, s->first, s->end);
        if (f->kept) {
            c.recorded_kept =
                sequences_of(batch, &record->kept, d, d * record_size, space->first_at[1] + own, s->first, s->end);
        }
    }
    int zero_products = all_zero(c.packed + f->stage[0].zero_times + c.from[0] * VL, (c.to[0] - c.from[0]) * VL);
    for (int64_t p = s->first; p < s->end; ++p) {
        const int64_t r = p - s->first;
        c.h[r] = initial_row(&c, args->h0, p, O);
        c.c[r] = initial_row(&c, args->c0, p, H);
        c.record[r] = space->record + (d * B + p) * record_size;
        zero_products = zero_products && (!args->h0 || all_zero(c.h[r], O));
    }
    c.begin = f->at_once ? (args->x.data ? 0 : batch->T) : zero_products;
    return c;
}

/* Steps [t, end) of a chunk, `active` positions at the first of them, from their input products a; those that are taken
 * at once from x, the rows of the first of them. Returns the positions active at `end`. */
INLINE int64_t forward_steps(const forward_call *c, const share *s, int64_t t, int64_t end, int64_t active, real *a,
                             real *const *x) {
    const forward_shape *f = c->shape;
    for (; t < end; ++t) {
        int64_t rows = active - s->first, taken = rows;
        take_step(c, rows, t, 0);
        for (; f->at_once && t + 1 < end; taken += rows) {
            pass_states(c, taken - rows, rows, taken);
            active = active_after(c->batch, active, ++t);
            rows = active - s->first;
            take_step(c, rows, t, taken);
        }
        const int stops = skips(c->job, c->worker, taken, c->job->layer->output_size, f->width);
        if (!stops) {
            if (f->at_once) {
                forward_at_once(c, t, taken, a, x);
            } else {
                forward_stage_step(c, 0, t, taken, a, c->h, 0);
            }
        }
        if (f->stages == 2) {
            frnn_barrier(s->group, s->parts);
            if (!stops) forward_stage_step(c, 1, t, taken, a, c->record, f->second * f->kept_step);
        }
        if (!f->at_once) copy_rows(&c->y_copy, (const real *const *)c->now_y, taken, c->unit, c->units);
        pass_states(c, taken - rows, rows, 0);
        a += taken * f->step;
        active = active_after(c->batch, active, t + 1);
        frnn_barrier(s->group, s->parts);
    }
    return active;
}

/* The states after each sequence's last step, if they are wanted. */
static void last_states(const forward_call *c, const share *s, const forward_space *space) {
    const frnn_forward_args *args = c->job->args;
    const forward_shape *f = c->shape;
    const int64_t B = c->batch->B, H = c->H, O = c->job->layer->output_size, at_c = f->cell.shape.c;
    for (int64_t p = s->first; p < s->end; ++p) {
        const int64_t last = length_at(c->batch, p) - 1;
        const real *h = initial_row(c, args->h0, p, O), *state = initial_row(c, args->c0, p, H);
        if (last >= 0) h = row_at(&c->y, p, last);
        if (last >= 0 && at_c != NONE) {
            const real *own = space->record + (c->d * B + p) * f->kept * f->kept_step;
            state = (c->keep ? row_at(&c->kept, p, last) : own) + at_c * f->kept_step;
        }
        real *hT = state_row(args->hT, B, c->batch, c->d, p, O), *cT = state_row(args->cT, B, c->batch, c->d, p, H);
        if (hT && hT != h) memmove(hT, h, (size_t)O * sizeof(real));
        if (cT && cT != state) memmove(cT, state, (size_t)H * sizeof(real));
    }
}

static void forward_direction(frnn_job *job, const frnn_batch *batch, const forward_space *space, const share *s,
                              const forward_shape *f, const frnn_worker *w, int d) {
    const frnn_layer *layer = job->layer;
    const frnn_forward_args *args = job->args;
    const frnn_record *record = job->record;
    const int64_t B = batch->B, I = layer->input_size, most_rows = forward_rows(f);
    const int function = f->cell.shape.input, inputs = args->x.data != NULL; /* or they are tangents that are zero */
    const int overwritten = f->at_once && args->x.data == args->y.data;
    const forward_call c = forward_call_of(job, batch, space, f, s, w, d);
    const sequences x =
        sequences_of(batch, inputs ? &args->x : &record->x, d, 0, space->x + w->id * B, s->first, s->end);

    /* A worker with sequences of its own has a chunk of its own; a gang that splits the units shares one. */
    const int64_t leader = w->id - s->part;
    real *a = space->a + (leader * most_rows + s->first_direction * B + s->first) * f->step;
    real **rows = space->rows + w->id * (most_rows + B);
    real *mapped = space->mapped + w->id * (most_rows + B) * f->input_step;

    int64_t active = active_after(batch, s->end, 0);
    for (int64_t t = 0, end; active > s->first; t = end) {
        int64_t count = 0, now = active;
        for (end = t; now > s->first && (end == t || count + now - s->first <= most_rows);) {
            for (int64_t p = s->first; p < now; ++p) rows[count++] = row_at(&x, p, end);
            now = active_after(batch, now, ++end);
        }
        if (!record && (function != IDENTITY || overwritten)) {
            map_rows(function, rows, count, I, mapped, f->input_step, &c.x_copy);
        } else if (f->at_once) {
            copy_rows(&c.x_copy, (const real *const *)rows, count, 0, I);
        }
        if (record && inputs && f->input_step) {
            map_tangents(function, rows, count, I, &args->x, &record->x, mapped, f->input_step);
        }
        for (int i = 0; i < f->stages; ++i) {
            const forward_stage *stage = &f->stage[i];
            packing W = stage->x;
            if (W.gates == 0) continue;
            if (!inputs) W.K = 0;
            const product_sums sums = {record ? c.zero : c.packed + stage->bias, 0, a + stage->column, f->step};
            product_rows(job, w, &W, c.packed + stage->W, (const real *const *)rows, count, c.from[i], c.to[i], sums,
                         i == 0 ? &c.x_copy : &no_copy);
        }
        poll(job, w, (double)count * (double)f->width * (double)(I + layer->output_size));
        if (leave(job, s->group, s->part, s->parts)) return;
        active = forward_steps(&c, s, t, end, active, a, rows);
    }
    if (s->part == 0 && !atomic_load(&job->stopped)) last_states(&c, s, space);
}

static void forward_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_forward_args *args = job->args;
    arena a = {.base = args->workspace};
    const forward_space space = forward_space_of(job->layer, job->batch, job->threads, &a);
    const forward_shape f = forward_shape_of(job->layer);
    const share s = share_of(w, job->layer, job->batch, f.cell.shape.gates, &f.stage[0].h);
    const frnn_batch own = scattered(job->batch, &s, &f.stage[0].h, space.order + w->id * job->batch->B);
    for (int d = s.first_direction; d < s.end_direction; ++d) forward_direction(job, &own, &space, &s, &f, w, d);
}
