/* What the time loops share: where rows lie, who does what.
 *
 * The sequences stand in `order`, by descending length, so at step t the active ones are positions 0 .. active - 1. The
 * second direction reads each sequence from its own last step: its rows have a negative time step. */

/* The first row of every sequence in the order that one direction reads it, and the step from one row to the next. */
typedef struct {
    real **first; /* (B,) */
    int64_t step;
} sequences;

INLINE int64_t length_of(const frnn_batch *batch, int64_t b) { return batch->lengths ? batch->lengths[b] : batch->T; }
INLINE int64_t sequence_at(const frnn_batch *batch, int64_t p) { return batch->order ? batch->order[p] : p; }
INLINE int64_t length_at(const frnn_batch *batch, int64_t p) { return length_of(batch, sequence_at(batch, p)); }
INLINE const frnn_batch *whole_of(const frnn_batch *batch) { return batch->whole ? batch->whole : batch; }

static int64_t total_rows(const frnn_batch *batch) {
    if (!batch->lengths) return batch->T * batch->B;
    int64_t rows = 0;
    for (int64_t b = 0; b < batch->B; ++b) rows += batch->lengths[b];
    return rows;
}

/* The state of position p in an array (D, B, n), or NULL; B counts all sequences, not those of a part of the batch. */
INLINE real *state_row(const void *states, int64_t B, const frnn_batch *batch, int d, int64_t p, int64_t n) {
    return states ? (real *)states + (d * B + sequence_at(batch, p)) * n : NULL;
}

/* A state's columns, in whole vectors. */
INLINE int64_t state_width(const frnn_layer *layer) {
    return divide_up(most(layer->hidden_size, layer->output_size), VL) * VL;
}

/* From a row to that of the step read next. */
INLINE int64_t time_step(const frnn_rows *rows, int d) {
    return d && !rows->in_window ? -rows->time_step : rows->time_step;
}

/* Where sequence b begins. */
INLINE int64_t sequence_start(const frnn_rows *rows, int64_t b) {
    return rows->starts ? rows->starts[b] * rows->time_step : b * rows->sequence_step;
}

/* Fills positions [from, to) of the sequences that `rows` hold, each row taken at `column`. */
static sequences sequences_of(const frnn_batch *batch, const frnn_rows *rows, int reverse, int64_t column, real **first,
                              int64_t from, int64_t to) {
    for (int64_t p = from; p < to; ++p) {
        const int64_t b = sequence_at(batch, p);
        int64_t step = 0; /* where the window begins; of a sequence that is over by then no row is read */
        if (!rows->in_window && length_at(batch, p) > 0) {
            step = reverse ? length_of(whole_of(batch), b) - 1 - batch->begin : batch->begin;
        }
        first[p] = (real *)rows->data + sequence_start(rows, b) + step * rows->time_step + column;
    }
    return (sequences){first, time_step(rows, reverse)};
}
INLINE real *row_at(const sequences *s, int64_t p, int64_t t) { return s->first[p] + t * s->step; }

/* Tables of rows, filled several rows at a time: those that lie `by` reals past others; and some `step` apart.
 * One row is taken without what a loop of vectors has before and after it. */
INLINE void rows_past(real **restrict to, real *const *restrict from, int64_t n, int64_t by) {
    if (n == 1) {
        *to = *from + by;
        return;
    }
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] + by;
}
INLINE void rows_apart(real **to, real *first, int64_t n, int64_t step) {
    for (int64_t i = 0; i < n; ++i, first += step) to[i] = first;
}

/* How many of positions [0, end) are still active at step t, given a count that was right for an earlier or the same t;
 * and the same going back in time. */
INLINE int64_t active_after(const frnn_batch *batch, int64_t active, int64_t t) {
    if (!batch->lengths) return t < batch->T ? active : 0;
    while (active > 0 && length_at(batch, active - 1) <= t) --active;
    return active;
}
INLINE int64_t active_before(const frnn_batch *batch, int64_t active, int64_t t, int64_t end) {
    if (!batch->lengths) return t < batch->T ? end : 0;
    while (active < end && length_at(batch, active) > t) ++active;
    return active;
}

/* One worker's part of the time loop: directions, positions of sequences (its part of them, of so many), and of the
 * hidden units one part of `parts`. */
typedef struct {
    int first_direction, end_direction;
    int64_t first, end;
    int rows_part, rows_parts;
    int part, parts;
    int group; /* of the barrier at which the parts meet */
} share;

/* Where a worker's panels begin, and end: shared out like parts, but the larger ones last, for the last panels have
 * fewer vectors. */
INLINE int64_t first_panel(const share *s, int64_t panels) {
    return panels - part(s->parts - s->part, s->parts, panels);
}
INLINE int64_t end_panel(const share *s, int64_t panels) {
    return panels - part(s->parts - s->part - 1, s->parts, panels);
}

/* How many of the steps [begin, end) position p has. */
INLINE int64_t steps_within(const frnn_batch *batch, int64_t p, int64_t begin, int64_t end) {
    return most(0, least(length_at(batch, p), end) - begin);
}

/* Where part i of n begins, when positions are shared out by their number of steps within [begin, end): a sequence that
 * two parts could have is that one's which has more of it. */
static int64_t cut_by_steps(const frnn_batch *batch, int64_t begin, int64_t end, int i, int n) {
    if (!batch->lengths || i == 0 || i == n) return part(i, n, batch->B);
    double steps = 0, before = 0;
    for (int64_t p = 0; p < batch->B; ++p) steps += (double)steps_within(batch, p, begin, end);
    for (int64_t p = 0; p < batch->B; ++p) {
        const double own = (double)steps_within(batch, p, begin, end);
        if ((before + own / 2) * n >= steps * i) return p;
        before += own;
    }
    return batch->B;
}

/* Shares the positions out anew, by the steps [begin, end) alone: for workers that meet there and then. */
static void share_rows(share *s, const frnn_batch *batch, int64_t begin, int64_t end) {
    s->first = cut_by_steps(batch, begin, end, s->rows_part, s->rows_parts);
    s->end = cut_by_steps(batch, begin, end, s->rows_part + 1, s->rows_parts);
}

/* What a step's product takes, as a multiple of one row's multiply-adds at their peak: tiles of a few rows, whose
 * weights come from the second-level cache, wait for them if they are low. */
static double step_cost(const packing *p, int64_t rows) {
    static const double tile[] = {0, 2.2, 2.6, 3.5, 4.1, 5.1, 6.1, 7.1, 8.1};
    const split tiles = tiles_of(p, rows);
    if (tiles.parts == 0) return 0;
    return (double)(tiles.parts - tiles.larger) * tile[tiles.each] +
           (double)tiles.larger * tile[tiles.each + (tiles.larger > 0)];
}

/* The largest share of the units where n workers, at least two, share out their panels. */
static double largest_share(const packing *p, int n) {
    int64_t units = 0;
    for (int i = 0; i < n; i += n - 1) { /* the first or the last one's */
        const share s = {.part = i, .parts = n};
        const int64_t first = first_vector(p, first_panel(&s, p->panels)) * VL;
        units = most(units, least(p->units, first_vector(p, end_panel(&s, p->panels)) * VL) - first);
    }
    return (double)units / (double)p->units;
}

/* Multiply-adds in a nanosecond at their peak, about; and what a shared step costs each worker, in barriers: it fetches
 * what the others have written. */
enum { MACS_PER_NS = 56 * sizeof(float) / sizeof(real), MEETINGS = 6 };

/* Rows of different sequences are independent: where each worker takes some, no barrier is needed. Few of them are
 * sooner done by two gangs, one for each direction; and if there are fewer than ROWS_ENOUGH for each worker, a gang may
 * share out the hidden units. Which takes less time is estimated: whoever has most takes longest, and a barrier takes
 * each worker as long as the next. Where workers take turns on a processor they share out rows alone, none with fewer
 * than ROWS_ENOUGH, and some may have none. */
enum { ROWS_ENOUGH = 4 };

static share share_of(const frnn_worker *w, const frnn_layer *layer, const frnn_batch *batch, int gates,
                      const packing *units) {
    const share nothing = {.rows_parts = 1, .parts = 1};
    const int D = layer->directions;
    const int64_t B = batch->B;
    share s = {.end_direction = D, .rows_parts = 1, .parts = 1, .group = 2 * w->group + 1};
    int id = w->id, size = w->crowded ? (int)most(1, least(w->size, B / ROWS_ENOUGH)) : w->size;
    if (id >= size) return nothing;
    if (D > 1 && size >= D &&
        1.01 * step_cost(units, divide_up(B, size / D)) < D * step_cost(units, divide_up(B, size))) {
        size /= D;
        s.first_direction = id / size;
        s.end_direction = s.first_direction + 1;
        s.group += s.first_direction;
        id %= size;
        if (s.first_direction >= D) return nothing;
    }
    const double row = gates * (double)layer->hidden_size * (double)layer->hidden_size / MACS_PER_NS;
    double best = row * step_cost(units, divide_up(B, size));
    for (int n = 2; B < ROWS_ENOUGH * size && n <= least(size, units->panels); ++n) {
        const double time = row * step_cost(units, B) * largest_share(units, n) + n * MEETINGS * w->meeting;
        if (time >= best) continue;
        best = time;
        s.parts = n;
    }
    if (s.parts == 1) {
        s.rows_part = id;
        s.rows_parts = size;
    } else {
        if (id >= s.parts) return nothing;
        s.part = id;
    }
    share_rows(&s, batch, 0, batch->T);
    return s;
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

/* Should the call end? The caller's worker sees to it about every POLL_MACS multiply-adds. */
#define POLL_MACS 2e7

static int poll(frnn_job *job, const frnn_worker *w, double macs) {
    if (w->caller && (job->macs += macs) >= POLL_MACS) {
        job->macs = 0;
        if (frnn_asks(job)) atomic_store(&job->stopped, 1);
    }
    return atomic_load(&job->stopped);
}

/* Within a chunk or a product: is the next piece to be skipped, K multiply-adds for each of `columns` of some rows?
 * Asked where a piece takes long. */
INLINE int takes_long(double macs) { return macs > POLL_MACS / 100; }
INLINE int skips(frnn_job *job, const frnn_worker *w, int64_t rows, int64_t K, int64_t columns) {
    const double macs = (double)rows * (double)K * (double)columns;
    return takes_long(macs) && poll(job, w, macs);
}

/* And within a panel of so many rows that their memory, used for the first time, may take long: after tile m. */
INLINE int skips_tiles(frnn_job *job, const frnn_worker *w, int64_t m, const packing *p) {
    enum { TILES = 64 };
    return m % TILES == TILES - 1 && skips(job, w, TILES * p->rows, p->K, TILE_VECS * VL);
}

/* The answer, for workers that go on without each other; those that share work meet here, and their first one's reading
 * holds for all, or one would leave and the others wait for it. */
static int leave(frnn_job *job, int group, int part, int parts) {
    if (parts == 1) return atomic_load(&job->stopped);
    if (part == 0) atomic_store(&job->leaving[group], atomic_load(&job->stopped));
    frnn_barrier(group, parts);
    return atomic_load(&job->leaving[group]);
}

/* The workspace is handed out piece by piece, in 64-byte units; with base NULL it is only measured. */
typedef struct {
    char *base;
    size_t used;
} arena;

static void *take(arena *a, size_t count, size_t size) {
    void *piece = a->base ? a->base + a->used : NULL;
    a->used += (count * size + 63) / 64 * 64;
    return piece;
}
INLINE real *take_reals(arena *a, int64_t count) { return take(a, (size_t)count, sizeof(real)); }
INLINE real **take_rows(arena *a, int64_t count) { return take(a, (size_t)count, sizeof(real *)); }
