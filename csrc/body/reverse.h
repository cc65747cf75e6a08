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

enum { BLOCK_ROWS = 256 };            /* rows that a sum over rows takes at a time */
#define CHUNK_MACS ((int64_t)1 << 31) /* multiply-adds of a chunk's steps, and of its sums, at most */

/* One stage of a step's products: dh from columns of deltas of the following step or, in a second stage, of this
 * one. */
typedef struct {
    packing p;      /* K deltas -> units */
    int64_t delta;  /* the first of those columns */
    int64_t packed; /* where its weights begin among a direction's packed ones, in reals */
} reverse_stage;

typedef struct {
    cell_kernels cell;
    reverse_stage stage[2];
    int stages, projected, kept;
    packing W;                        /* delta -> dx */
    int64_t W_at, p_at, p_step, size; /* in a direction's packed weights */
    int64_t kept_step;                /* from one column of the record to the next */
    int64_t columns;                  /* C*H, the deltas of one row; beside them lies dh, if it is projected */
    int64_t rows;                     /* of a chunk, unless one step has more */
    int64_t step;                     /* from one row of deltas to the next */
    int64_t input_step;
} reverse_shape;

static reverse_shape reverse_shape_of(const frnn_layer *layer) {
    const int64_t I = layer->input_size, H = layer->hidden_size, O = layer->output_size;
    reverse_shape f = {.cell = cell_of(layer->cell), .stages = 1, .projected = O < H};
    const cell_shape *s = &f.cell.shape;
    f.kept = s->kept + f.projected;
    f.kept_step = column_step(H);
    f.columns = s->columns * H;
    f.stage[0] = (reverse_stage){packing_of(O, 1, 1, s->h * H), s->h_first * H, 0};
    f.size = (int64_t)packed_size(&f.stage[0].p);
    if (f.projected || s->second != NONE) {
        f.stages = 2;
        f.stage[1] = f.projected ? (reverse_stage){packing_of(H, 1, 1, O), f.columns, f.size}
                                 : (reverse_stage){packing_of(H, 1, 1, (s->columns - s->h) * H), s->h * H, f.size};
        f.size += (int64_t)packed_size(&f.stage[1].p);
    }
    f.W = chunk_packing_of(I, s->x * H);
    f.W.slice = slice_of(f.W.K, SLICE / 2); /* dx is one such sum, and nothing else hides what it loses */
    f.W_at = f.size;
    f.p_at = f.W_at + (int64_t)packed_size(&f.W);
    f.p_step = divide_up(H, VL) * VL;
    f.size = f.p_at + (s->peephole ? 3 * f.p_step : 0);
    /* Few enough that a chunk is over soon after Ctrl-C; from sizes alone, since the order of the sums depends on
     * it. */
    f.rows = most(32, least(BLOCK_ROWS, CHUNK_MACS / (f.columns * (I + O))));
    f.step = row_step(f.columns + (f.projected ? O : 0));
    f.input_step = s->input == IDENTITY ? 0 : divide_up(I, VL) * VL;
    return f;
}

/* What one direction's chunk takes of the workspace; it is of no use after it. */
typedef struct {
    real *delta;                           /* (rows, step) */
    real *mapped;                          /* inputs, gone through the cell's function, (rows, input_step) */
    real **x, **h, **before, **kept, **dx; /* for every row; `before` is c_{t-1} */
} reverse_chunk;

/* One direction's part of the workspace. */
typedef struct {
    const real *packed;
    reverse_chunk chunk;
    real *carry;  /* the deltas of the step after the chunk, (B, step) */
    real *direct; /* the gradients that pass from step to step beside the products, (B, p_step) */
    real **x, **y, **kept, **dy, **dx, **h0, **c0; /* (B,): first rows in reading order; initial states */
    real **direct_rows;                            /* (B,) */
} reverse_direction;

/* For each position, the rows of the step at hand. */
typedef struct {
    real **y, **h, **c, **kept, **dy, **delta;
} reverse_rows;

static size_t reverse_packed_size(const frnn_layer *layer) {
    return (size_t)(layer->directions * reverse_shape_of(layer).size) * sizeof(real);
}

/* The packed weights of a direction: R, then P or what of R the second stage takes, then W and the peepholes. */
static void reverse_pack(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const reverse_shape f = reverse_shape_of(job->layer);
    const cell_shape *s = &f.cell.shape;
    const int64_t H = job->layer->hidden_size, O = job->layer->output_size;
    for (int d = 0; d < job->layer->directions; ++d) {
        const frnn_weights *weights = &job->weights[d];
        real *packed = (real *)job->packed + d * f.size;
        pack_blocks(job, w, &f.stage[0].p, weights->R, O, s->block + s->h_first, H, packed);
        if (f.projected) {
            pack_blocks(job, w, &f.stage[1].p, weights->P, H, s->block, O, packed + f.stage[1].packed);
        } else if (f.stages == 2) {
            pack_blocks(job, w, &f.stage[1].p, weights->R, O, s->block + s->h, H, packed + f.stage[1].packed);
        }
        pack_blocks(job, w, &f.W, weights->W, job->layer->input_size, s->block, H, packed + f.W_at);
        if (s->peephole && w->id == 0) pack_peepholes(weights->p, H, f.p_step, packed + f.p_at);
    }
}

/* A shard of a call as one worker sees it. */
typedef struct {
    frnn_job *job;
    const frnn_backward_args *args;
    const frnn_layer *layer;
    const frnn_batch *batch; /* the shard's sequences */
    const frnn_worker *worker;
    const frnn_weights *sums; /* for each direction, what the products over rows are added to; or NULL */
    reverse_shape shape;
    share share;
    real *panel; /* of BLOCK_ROWS rows */
    real *zero;  /* a row that stands for an initial state */
    reverse_rows rows;
    int first;      /* is this the first chunk, which begins the sums? */
    int64_t active; /* how many positions the steps taken so far have reached */
} reverse_call;

/* The initial or last state, or its gradient, of position p in an array (D, B, n), or NULL. */
INLINE real *end_state(const reverse_call *c, const void *states, int d, int64_t p, int64_t n) {
    return state_row(states, c->job->batch->B, c->batch, d, p, n);
}

#include "products.h"

/* Finds the first rows: each worker those of some sequences. */
static void reverse_prepare(const reverse_call *c, int d, const reverse_direction *v) {
    const frnn_backward_args *args = c->args;
    const frnn_record *record = &args->record;
    const int id = c->worker->id, size = c->worker->size;
    const int64_t from = part(id, size, c->batch->B), to = part(id + 1, size, c->batch->B);
    const int64_t H = c->layer->hidden_size, O = c->layer->output_size;
    sequences_of(c->batch, &record->x, d, 0, v->x, from, to);
    sequences_of(c->batch, &record->y, d, d * O, v->y, from, to);
    sequences_of(c->batch, args->dx.data ? &args->dx : &record->x, d, 0, v->dx, from, to);
    if (record->kept.data)
        sequences_of(c->batch, &record->kept, d, d * c->shape.kept * c->shape.kept_step, v->kept, from, to);
    if (args->dy.data) sequences_of(c->batch, &args->dy, d, d * O, v->dy, from, to);
    for (int64_t p = from; p < to; ++p) {
        v->h0[p] = record->h0 ? end_state(c, record->h0, d, p, O) : c->zero;
        v->c0[p] = record->c0 ? end_state(c, record->c0, d, p, H) : c->zero;
        if (c->shape.cell.shape.direct) v->direct_rows[p] = v->direct + p * c->shape.p_step;
    }
}

/* Columns [unit, unit + n) of a row of a state's gradient into `vecs` vectors; a row that is NULL is zero. */
INLINE void load_state(const real *row, int64_t unit, int64_t n, int vecs, real *out) {
    for (int u = 0; u < vecs; ++u) {
        v_store(out + u * VL, row ? load_upto(row + unit + u * VL, n - u * VL) : v_set1(0));
    }
}

/* Clips n elements to [-limit, limit]; NaN stays. */
static void clip(real *values, int64_t n, double limit) {
    const vec high = v_set1((real)limit), low = v_set1(-(real)limit);
    for (int64_t i = 0; i < n; i += VL) v_store(values + i, v_max(low, v_min(high, v_load(values + i))));
}

/* All that comes back to a state h in a tile of dh, with what passes beside the products to h itself; clipped if that
 * was asked for. */
static void gather_dh(const reverse_call *c, real *tile, const reverse_point *p) {
    const cell_shape *s = &c->shape.cell.shape;
    for (int r = 0; r < p->rows; ++r) {
        real *row = tile + r * p->vecs * VL;
        for (int u = 0; s->direct && s->c == NONE && u < p->vecs; ++u) {
            real *direct = p->direct[r] + p->unit + u * VL;
            v_store(row + u * VL, v_add(v_load(row + u * VL), v_load(direct)));
            v_store(direct, v_set1(0));
        }
        if (c->args->clip_step > 0) clip(row, p->vecs * VL, c->args->clip_step);
    }
}

/* dh of a stage for positions [p, p + height), panel j, from rows of deltas by position; zero if nothing is
 * multiplied. */
INLINE void dh_tile(const reverse_call *c, int i, const reverse_direction *v, int64_t p, int height, int64_t j,
                    const real *deltas, real *tile, lines_ahead *ahead) {
    const reverse_stage *stage = &c->shape.stage[i];
    const int vecs = panel_vectors(&stage->p, j);
    const real *rows[TILE_ROWS];
    for (int r = 0; r < height; ++r) rows[r] = deltas + (p + r) * c->shape.step + stage->delta;
    tile_product(height, vecs, stage->p.K, stage->p.slice, rows, 1,
                 v->packed + stage->packed + packed_panel(&stage->p, j), zeros, 0, tile, vecs * VL, ahead);
}

/* Asks for what the derivative takes from memory; by the time dh is there, so is this. c_{t-1} was recorded with the
 * step before, and c_t has been fetched as the c_{t-1} of the step after. */
INLINE void ask_recorded(const reverse_shape *f, const reverse_point *p, lines_ahead *ahead) {
    const cell_shape *s = &f->cell.shape;
    const int64_t n = p->vecs * VL;
    for (int r = 0; r < p->rows; ++r) {
        if (s->y_in_reverse) ask_ahead(ahead, p->at.y[r] + p->unit, n);
        if (s->h_in_reverse) ask_ahead(ahead, p->at.h[r] + p->unit, n);
        if (s->c != NONE) ask_ahead(ahead, p->at.c[r] + p->unit, n);
        if (p->dy) ask_ahead(ahead, p->dy[r] + p->unit, n);
        for (int k = 0; k < s->kept; ++k) {
            if (k != s->c) ask_ahead(ahead, p->at.record[r] + k * p->kept_step + p->unit, n);
        }
    }
}

/* One stage of step t, the one at hand, for positions [from, to) and the worker's panels: `deltas`, row by position,
 * are those of the following step or, in a second stage, of this one. Without them dh begins as the gradient of the
 * last state. */
static void reverse_stage_step(const reverse_call *c, int d, int i, const reverse_direction *v, int64_t t, int64_t from,
                               int64_t to, const real *deltas) {
    const reverse_shape *f = &c->shape;
    const packing *stage = &f->stage[i].p;
    const share *s = &c->share;
    const split tiles = tiles_of(stage, to - from);
    const reverse_rows *rows = &c->rows;
    const int project = f->projected && i == 0;
    reverse_point point = {.stage = f->projected ? 0 : i, .H = c->layer->hidden_size, .kept_step = f->kept_step};
    point.p_step = f->p_step;
    point.p = v->packed + f->p_at;
    point.dh_at = f->columns;
    const int64_t first = first_panel(s, stage->panels), end = end_panel(s, stage->panels);
    for (int64_t n = first; n < end && !skips(c->job, c->worker, to - from, stage->K, TILE_VECS * VL); ++n) {
        const int64_t j = to_and_fro(n, first, end, t);
        point.vecs = panel_vectors(stage, j);
        point.unit = first_vector(stage, j) * VL;
        point.n = stage->units - point.unit;
        for (int64_t m = 0; m < tiles.parts; ++m) {
            const int64_t p = from + split_at(&tiles, m);
            point.rows = (int)(from + split_at(&tiles, m + 1) - p);
            point.at = (recorded_rows){(const real *const *)rows->y + p, (const real *const *)rows->h + p,
                                       (const real *const *)rows->c + p, (const real *const *)rows->kept + p};
            point.dy = c->args->dy.data && i == 0 ? (const real *const *)rows->dy + p : NULL;
            point.delta = rows->delta + p;
            point.direct = v->direct_rows + p;
            _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
            lines_ahead ahead;
            ahead.at_once = !deltas || stage->far || point.rows < ROWS_ENOUGH;
            ahead.count = 0;
            ask_recorded(f, &point, &ahead);
            if (deltas) {
                if (stage->far) ask_next_lines(stage, v->packed + f->stage[i].packed, n, first, end, t, m, &ahead);
                dh_tile(c, i, v, p, point.rows, j, deltas, tile, &ahead);
                if (c->args->clip_step > 0 && i == 0) gather_dh(c, tile, &point);
            } else {
                for (int r = 0; r < point.rows; ++r) {
                    const real *dhT = end_state(c, c->args->dhT, d, p + r, stage->units);
                    load_state(dhT, point.unit, point.n, point.vecs, tile + r * point.vecs * VL);
                }
            }
            if (project) {
                project_backward(tile, &point);
            } else {
                f->cell.backward(tile, &point);
            }
            if (skips_tiles(c->job, c->worker, m, stage)) return;
        }
    }
}

/* The same where there is no product: all of the worker's units at once. The rows of dy that the next step takes are
 * asked for. */
static void reverse_plain_step(const reverse_call *c, const reverse_direction *v, int64_t t, int64_t from, int64_t to,
                               int64_t dy_step) {
    const packing *units = &c->shape.stage[0].p;
    const share *s = &c->share;
    const reverse_rows *rows = &c->rows;
    const int64_t first = first_vector(units, first_panel(s, units->panels));
    reverse_point point = {.unit = first * VL, .H = c->layer->hidden_size, .kept_step = c->shape.kept_step};
    point.vecs = (int)(first_vector(units, end_panel(s, units->panels)) - first);
    point.n = units->units - point.unit;
    for (int64_t p = from; p < to; p += point.rows) {
        point.rows = (int)least(ROWS_AHEAD, to - p);
        point.at = (recorded_rows){(const real *const *)rows->y + p, (const real *const *)rows->h + p,
                                   (const real *const *)rows->c + p, (const real *const *)rows->kept + p};
        point.delta = rows->delta + p;
        point.direct = v->direct_rows + p;
        if (c->args->dy.data) {
            point.dy = (const real *const *)rows->dy + p;
            for (int r = 0; t > 0 && r < point.rows; ++r) {
                fetch_ahead(rows->dy[p + r] - dy_step + point.unit, point.vecs * VL);
            }
        }
        c->shape.cell.backward(NULL, &point);
    }
}

/* What passes beside the products to c (to h, where there are no products): for positions [from, to), whose last step
 * this is, it begins as the gradient of the last state; for those before, it is clipped if that was asked for. */
static void begin_direct(const reverse_call *c, int d, const reverse_direction *v, int64_t from, int64_t to) {
    const packing *units = &c->shape.stage[c->shape.stages - 1].p;
    const share *s = &c->share;
    const cell_shape *cell = &c->shape.cell.shape;
    const int clips = c->args->clip_step > 0 && (cell->c != NONE || cell->h == 0);
    const void *end = cell->c == NONE && cell->h == 0 ? c->args->dhT : c->args->dcT;
    if (!cell->direct) return;
    for (int64_t j = first_panel(s, units->panels); j < end_panel(s, units->panels); ++j) {
        const int64_t unit = first_vector(units, j) * VL;
        const int vecs = panel_vectors(units, j);
        for (int64_t p = s->first; clips && p < from; ++p)
            clip(v->direct_rows[p] + unit, vecs * VL, c->args->clip_step);
        for (int64_t p = from; p < to; ++p) {
            load_state(end_state(c, end, d, p, units->units), unit, units->units - unit, vecs,
                       v->direct_rows[p] + unit);
        }
    }
}

/* The steps of a chunk, from t - 1 back. `following` positions were active at t, their deltas are in carry. Row by row,
 * in the order of the steps taken, the chunk's tables are filled for the products. */
static void reverse_steps(const reverse_call *c, int d, const reverse_direction *v, int64_t t, int64_t end,
                          int64_t following) {
    const frnn_backward_args *args = c->args;
    const reverse_shape *f = &c->shape;
    const cell_shape *cell = &f->cell.shape;
    const share *s = &c->share;
    const reverse_rows *now = &c->rows;
    const frnn_record *record = &args->record;
    const int64_t x_step = time_step(&record->x, d), y_step = time_step(&record->y, d);
    const int64_t kept_step = time_step(&record->kept, d);
    const int64_t dx_step = time_step(&args->dx, d), dy_step = time_step(&args->dy, d);
    const real *next = v->carry;
    int64_t offset = 0;
    while (t-- > end) {
        const int64_t active = active_before(c->batch, following, t, c->batch->B);
        const int64_t own_end = most(s->first, least(active, s->end)),
                      own_following = most(s->first, least(following, own_end));
        const int64_t own = own_end - s->first, row = offset + s->first;
        const int64_t before = t > 0 ? t - 1 : 0;
        real **h = (t > 0 ? v->y : v->h0) + s->first, **kept = v->kept + s->first;
        if (cell->y_in_reverse) rows_past(now->y + s->first, v->y + s->first, own, t * y_step);
        if (cell->h_in_reverse) rows_past(now->h + s->first, h, own, before * y_step);
        if (f->kept) rows_past(now->kept + s->first, kept, own, t * kept_step);
        if (cell->c != NONE) {
            rows_past(now->c + s->first, t > 0 ? kept : v->c0 + s->first, own,
                      t > 0 ? before * kept_step + cell->c * f->kept_step : 0);
        }
        if (args->dy.data) rows_past(now->dy + s->first, v->dy + s->first, own, t * dy_step);
        rows_apart(now->delta + s->first, v->chunk.delta + row * f->step, own, f->step);
        if (s->part == 0) {
            rows_past(v->chunk.x + row, v->x + s->first, own, t * x_step);
            rows_past(v->chunk.h + row, h, own, before * y_step);
            if (cell->peephole) rows_past(v->chunk.before + row, now->c + s->first, own, 0);
            if (cell->peephole || f->stages == 2) rows_past(v->chunk.kept + row, kept, own, t * kept_step);
            rows_past(v->chunk.dx + row, v->dx + s->first, own, t * dx_step);
        }
        if (f->input_step && s->part == 0) {
            map_rows(cell->input, v->chunk.x + row, own, c->layer->input_size, v->chunk.mapped + row * f->input_step,
                     f->input_step, &no_copy);
        }
        const int stops = skips(c->job, c->worker, own, f->columns, c->layer->output_size);
        begin_direct(c, d, v, own_following, own_end);
        if (!stops && cell->h == 0) {
            reverse_plain_step(c, v, t, s->first, own_end, dy_step);
        } else if (!stops) {
            reverse_stage_step(c, d, 0, v, t, s->first, own_following, next);
            reverse_stage_step(c, d, 0, v, t, own_following, own_end, NULL);
        }
        next = v->chunk.delta + offset * f->step;
        if (f->stages == 2) {
            frnn_barrier(s->group, s->parts);
            if (!stops) reverse_stage_step(c, d, 1, v, t, s->first, own_end, next);
        }
        frnn_barrier(s->group, s->parts);
        offset += active;
        following = active;
    }
}

/* The gradients of the initial states: what comes back from step 0 for its `active` positions, and the gradients of the
 * last states themselves for sequences of length 0. */
static void initial_gradient(const reverse_call *c, int d, const reverse_direction *v, int64_t active) {
    const share *s = &c->share;
    const reverse_shape *f = &c->shape;
    const frnn_backward_args *args = c->args;
    for (int i = 0; i < 2; ++i) { /* dh0, with the panels of the first stage; dc0, with those of the last */
        const packing *units = &f->stage[i ? f->stages - 1 : 0].p;
        void *out = i ? args->dc0 : args->dh0;
        const int64_t first = first_panel(s, units->panels), end = end_panel(s, units->panels);
        for (int64_t j = first; out && j < end; ++j) {
            if (i == 0 && skips(c->job, c->worker, s->end - s->first, units->K, TILE_VECS * VL)) return;
            reverse_point point = {.vecs = panel_vectors(units, j), .unit = first_vector(units, j) * VL};
            point.n = units->units - point.unit;
            for (int64_t p = s->first; p < s->end; p += point.rows) {
                _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
                const int returns = p < active; /* else the sequence has no step */
                point.rows = returns ? (int)least(units->rows, least(active, s->end) - p) : 1;
                point.direct = v->direct_rows + p;
                if (returns && i == 0) {
                    dh_tile(c, 0, v, p, point.rows, j, v->carry, tile, NULL);
                    gather_dh(c, tile, &point);
                }
                for (int r = 0; r < point.rows; ++r) {
                    real *row = tile + r * point.vecs * VL;
                    if (!returns || i == 1) {
                        const real *end_row = end_state(c, i ? args->dcT : args->dhT, d, p + r, units->units);
                        load_state(returns ? v->direct_rows[p + r] : end_row, point.unit, point.n, point.vecs, row);
                        if (returns && args->clip_step > 0) clip(row, point.vecs * VL, args->clip_step);
                    }
                    put_tile(row, 1, point.vecs, end_state(c, out, d, p + r, units->units) + point.unit, 0, point.n, 0);
                }
            }
        }
    }
}
