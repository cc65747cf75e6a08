/* The reverse pass of a call. The order of its sums depends on the batch and the sizes alone, not on the threads; yet
 * with many sequences, processors whose caches are far apart are to exchange nothing at every chunk. So such a batch is
 * taken in two shards, each by a gang of workers, or one after the other by all of them if they cannot be halved. The
 * first shard's sums are the gradients; the other one has its own, which are added after a span of some chunks.
 *
 * Few sequences, and layers whose weights are so large that to read them twice for each step takes time, are one shard,
 * and a span is one chunk. */

enum { SHARDS = 2, SHARD_SEQUENCES = 4, SHARD_ROWS = 1536, SPAN_CHUNKS = 8 };

static int64_t span_rows(const reverse_shape *f, int shards) {
    return shards == 1 ? f->rows : shards * SPAN_CHUNKS * f->rows;
}

/* How many shards so many rows are taken in. */
static int shards_of_rows(const frnn_layer *layer, int64_t rows) {
    const int64_t I = layer->input_size, columns = layer->contexts ? layer->contexts * I : I + layer->output_size;
    const int64_t weights = cell_of(layer->cell).shape.gates * layer->hidden_size * columns;
    return rows < SHARD_ROWS || weights * (int64_t)sizeof(real) >= FAR_WEIGHTS ? 1 : SHARDS;
}

static int shards_of(const frnn_layer *layer, const frnn_batch *batch) {
    return batch->B < SHARDS * SHARD_SEQUENCES ? 1 : shards_of_rows(layer, total_rows(whole_of(batch)));
}

/* The sequences of shard i, into `order` if `fills`. Where all have one length a shard is those that the same workers
 * took forward, else they are dealt out to and fro, so that at any step the shards have about as many. */
static frnn_batch shard_batch(const frnn_batch *batch, int shards, int i, int64_t *order, int fills) {
    frnn_batch own = *batch;
    if (shards == 1) return own;
    const frnn_batch *whole = whole_of(batch);
    const int64_t B = batch->B, shortest = length_of(whole, sequence_at(batch, B - 1));
    const int equal = length_of(whole, sequence_at(batch, 0)) == shortest;
    own.B = 0;
    own.order = order;
    for (int64_t p = 0; p < B; ++p) {
        if (i != (equal ? p * shards / B : to_and_fro(p % shards, 0, shards, p / shards))) continue;
        if (fills) order[own.B] = sequence_at(batch, p);
        ++own.B;
    }
    return own;
}

/* The workers of a call in gangs, and a worker as a member of its own. */
typedef struct {
    int gang, gangs;
    frnn_worker worker;
} gang_member;

static gang_member member_of(const frnn_worker *w, int shards) {
    gang_member member = {.gangs = w->size % shards ? 1 : shards, .worker = *w};
    member.worker.size /= member.gangs;
    member.worker.id %= member.worker.size;
    member.gang = w->id / member.worker.size;
    if (member.gangs > 1) member.worker.group = 2 * w->group + 1 + member.gang;
    return member;
}

/* The arrays of a direction's weights or gradients. */
enum { WEIGHT_ARRAYS = 6 };
typedef struct {
    void **array;
    int64_t reals;
} weight_array;

static void weight_arrays_of(const frnn_layer *layer, frnn_weights *w, weight_array arrays[]) {
    const int64_t H = layer->hidden_size, O = layer->output_size, rows = cell_of(layer->cell).shape.gates * H;
    const weight_array all[WEIGHT_ARRAYS] = {{&w->W, rows * layer->input_size * most(1, layer->contexts)},
                                             {&w->R, layer->contexts ? 0 : rows * O},
                                             {&w->b_ih, rows},
                                             {&w->b_hh, rows},
                                             {&w->P, layer->contexts ? 0 : O * H},
                                             {&w->p, layer->contexts ? 0 : 3 * H}};
    memcpy(arrays, all, sizeof all);
}

/* Sums of a shard's own, for one direction. */
static void take_sums(arena *a, const frnn_layer *layer, frnn_weights *sums) {
    weight_array arrays[WEIGHT_ARRAYS];
    weight_arrays_of(layer, sums, arrays);
    for (int k = 0; k < WEIGHT_ARRAYS; ++k) *arrays[k].array = take_reals(a, arrays[k].reals);
}

typedef struct {
    reverse_direction direction[2];
    frnn_weights sums[2];
    int64_t *order;
} reverse_shard;

typedef struct {
    reverse_shard shard[SHARDS];
    real *panels;      /* for each worker, a packed panel of BLOCK_ROWS rows */
    real *zero;        /* for each worker, a row that stands for an initial state */
    reverse_rows rows; /* of each worker */
} reverse_space;

static reverse_space reverse_space_of(const frnn_layer *layer, const frnn_batch *batch, int threads, arena *a) {
    const reverse_shape f = reverse_shape_of(layer);
    const int shards = shards_of(layer, batch);
    const int64_t B = divide_up(batch->B, shards), rows = f.rows + B;
    reverse_space s = {0};
    for (int i = 0; i < shards; ++i) {
        reverse_shard *shard = &s.shard[i];
        for (int d = 0; d < layer->directions; ++d) {
            reverse_direction *v = &shard->direction[d];
            v->chunk.delta = take_reals(a, rows * f.step);
            v->carry = take_reals(a, B * f.step);
            v->direct = take_reals(a, f.cell.shape.direct ? B * f.p_step : 0);
            v->chunk.mapped = take_reals(a, rows * f.input_step);
            real ***by_sequence[] = {&v->x, &v->y, &v->kept, &v->dy, &v->dx, &v->h0, &v->c0, &v->direct_rows};
            for (int k = 0; k < LENGTH(by_sequence); ++k) *by_sequence[k] = take_rows(a, B);
            real ***by_row[] = {&v->chunk.x, &v->chunk.h, &v->chunk.before, &v->chunk.kept, &v->chunk.dx};
            for (int k = 0; k < LENGTH(by_row); ++k) *by_row[k] = take_rows(a, rows);
            if (i > 0) take_sums(a, layer, &shard->sums[d]);
        }
        shard->order = take(a, shards > 1 ? (size_t)B : 0, sizeof(int64_t));
    }
    s.panels = take_reals(a, (int64_t)threads * BLOCK_ROWS * TILE_VECS * VL);
    s.zero = take_reals(a, threads * state_width(layer));
    real ***by_worker[] = {&s.rows.y, &s.rows.h, &s.rows.c, &s.rows.kept, &s.rows.dy, &s.rows.delta};
    for (int i = 0; i < LENGTH(by_worker); ++i) *by_worker[i] = take_rows(a, threads * B);
    return s;
}

static size_t reverse_workspace_size(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    arena a = {0};
    reverse_space_of(layer, batch, threads, &a);
    return a.used;
}

/* Where some steps begin that end before step `end`, not before `from` and of about so many rows, at which `active`
 * positions are active (if any is); the rows they have, and those of their first step. */
typedef struct {
    int64_t begin, active, rows, first_rows;
} steps;

static steps steps_before(const frnn_batch *batch, int64_t most_rows, int64_t from, int64_t end, int64_t active) {
    steps k = {batch->B > 0 ? end : 0, active, 0, 0};
    for (; k.begin > from; --k.begin) {
        const int64_t now = active_before(batch, k.active, k.begin - 1, batch->B);
        if (k.rows > 0 && k.rows + now > most_rows) break;
        k.rows += k.first_rows = k.active = now;
    }
    return k;
}

static int64_t span_begin(const frnn_layer *layer, const frnn_batch *batch, int64_t end) {
    const reverse_shape f = reverse_shape_of(layer);
    const int64_t rows = span_rows(&f, shards_of(layer, batch));
    return steps_before(batch, rows, 0, end, active_before(batch, 0, end, batch->B)).begin;
}

/* Of what a shard's own sums could be, those that are wanted: for the first shard the gradients. */
static const frnn_weights *sums_of(const frnn_layer *layer, const frnn_weights *gradients, frnn_weights own[], int i) {
    if (i == 0 || !gradients) return gradients;
    for (int d = 0; d < layer->directions; ++d) {
        frnn_weights wanted = gradients[d];
        weight_array to[WEIGHT_ARRAYS], from[WEIGHT_ARRAYS];
        weight_arrays_of(layer, &wanted, to);
        weight_arrays_of(layer, &own[d], from);
        for (int k = 0; k < WEIGHT_ARRAYS; ++k) {
            if (!*to[k].array) *from[k].array = NULL;
        }
    }
    return own;
}

/* What this worker needs for a shard. */
static void begin_shard(reverse_call *c, reverse_direction direction[]) {
    c->shape = reverse_shape_of(c->layer);
    c->share = share_of(c->worker, c->layer, c->batch, c->shape.cell.shape.gates, &c->shape.stage[0].p);
    c->active = active_before(c->batch, 0, c->batch->T, c->batch->B);
    for (int d = 0; d < c->layer->directions; ++d) {
        direction[d].packed = (const real *)c->args->packed + d * c->shape.size;
        reverse_prepare(c, d, &direction[d]);
    }
}

/* Steps [begin, end) of a shard, chunk by chunk from the last one back; once at least, for without any step the sums
 * are zero. Should the call end? */
static int reverse_span(reverse_call *c, const reverse_direction direction[], int64_t begin, int64_t end) {
    const int D = c->layer->directions, size = c->worker->size, group = c->worker->group;
    int64_t t = end;
    int stopped;
    do {
        const steps k = steps_before(c->batch, c->shape.rows, begin, t, c->active);
        share_rows(&c->share, c->batch, k.begin, t);
        for (int d = c->share.first_direction; d < c->share.end_direction; ++d) {
            reverse_steps(c, d, &direction[d], t, k.begin, c->active);
        }
        frnn_barrier(group, size);
        for (int d = 0; d < D; ++d) {
            reverse_products(c, d, &direction[d], k.rows, k.first_rows);
            if (d + 1 < D) frnn_barrier(group, size);
        }
        poll(c->job, c->worker,
             2.0 * D * (double)k.rows * (double)c->shape.columns *
                 (double)(c->layer->input_size + c->layer->output_size));
        stopped = leave(c->job, group, c->worker->id, size);
        c->first = 0;
        c->active = k.active;
        t = k.begin;
    } while (!stopped && t > begin);
    return stopped;
}

/* The sums of a shard after the first, added to the gradients: each worker takes some of every array. */
static void add_sums(const frnn_job *job, const frnn_worker *w, frnn_weights sums[]) {
    const frnn_weights *gradients = ((const frnn_backward_args *)job->args)->gradients;
    for (int d = 0; gradients && d < job->layer->directions; ++d) {
        frnn_weights out = gradients[d];
        weight_array to[WEIGHT_ARRAYS], from[WEIGHT_ARRAYS];
        weight_arrays_of(job->layer, &out, to);
        weight_arrays_of(job->layer, &sums[d], from);
        for (int k = 0; k < WEIGHT_ARRAYS; ++k) {
            const int64_t vectors = *to[k].array ? divide_up(to[k].reals, VL) : 0;
            for (int64_t v = part(w->id, w->size, vectors); v < part(w->id + 1, w->size, vectors); ++v) {
                real *sum = (real *)*to[k].array + v * VL;
                const int64_t n = to[k].reals - v * VL;
                store_upto(sum, v_add(load_upto(sum, n), load_upto((real *)*from[k].array + v * VL, n)), n);
            }
        }
    }
}

static void reverse_work(void *argument, const frnn_worker *w) {
    frnn_job *job = argument;
    const frnn_batch *batch = job->batch;
    const frnn_backward_args *args = job->args;
    arena a = {.base = args->workspace};
    reverse_space space = reverse_space_of(job->layer, batch, job->threads, &a);
    const int shards = shards_of(job->layer, batch);
    const gang_member own_gang = member_of(w, shards);
    const int gang = own_gang.gang, gangs = own_gang.gangs;
    const frnn_worker member = own_gang.worker;

    const int64_t own = w->id * divide_up(batch->B, shards);
    const reverse_rows rows = {space.rows.y + own,    space.rows.h + own,  space.rows.c + own,
                               space.rows.kept + own, space.rows.dy + own, space.rows.delta + own};
    real *panel = space.panels + (int64_t)w->id * BLOCK_ROWS * TILE_VECS * VL;
    real *zero = space.zero + w->id * state_width(job->layer);
    memset(zero, 0, (size_t)state_width(job->layer) * sizeof(real));
    frnn_batch parts[SHARDS];
    reverse_call calls[SHARDS];
    for (int i = gang; i < shards; i += gangs) {
        parts[i] = shard_batch(batch, shards, i, space.shard[i].order, member.id == 0);
        calls[i] =
            (reverse_call){job, args, job->layer, &parts[i], &member, .panel = panel, .zero = zero, .rows = rows};
        calls[i].sums = sums_of(job->layer, args->gradients, space.shard[i].sums, i);
        calls[i].first = i > 0 || !args->add;
        for (int d = 0; d < job->layer->directions; ++d) { /* a gang has but one chunk at a time */
            space.shard[i].direction[d].chunk = space.shard[gang].direction[d].chunk;
        }
    }
    frnn_barrier(member.group, member.size);
    for (int i = gang; i < shards; i += gangs) begin_shard(&calls[i], space.shard[i].direction);
    frnn_barrier(member.group, member.size);

    const reverse_shape f = reverse_shape_of(job->layer);
    int64_t t = batch->B > 0 ? batch->T : 0, active = active_before(batch, 0, batch->T, batch->B);
    int stopped = 0;
    do {
        const steps span = steps_before(batch, span_rows(&f, shards), 0, t, active);
        for (int i = gang; i < shards; i += gangs) {
            stopped = reverse_span(&calls[i], space.shard[i].direction, span.begin, t);
            calls[i].first = i > 0;
        }
        if (shards > 1) {
            frnn_barrier(w->group, w->size);
            for (int i = 1; i < shards; ++i) add_sums(job, w, space.shard[i].sums);
            stopped = leave(job, w->group, w->id, w->size);
        }
        if (stopped) return;
        t = span.begin;
        active = span.active;
    } while (t > 0);
    for (int i = gang; i < shards; i += gangs) {
        reverse_call *c = &calls[i];
        share_rows(&c->share, c->batch, 0, batch->T);
        for (int d = c->share.first_direction; d < c->share.end_direction; ++d) {
            initial_gradient(c, d, &space.shard[i].direction[d], c->active);
        }
    }
}
