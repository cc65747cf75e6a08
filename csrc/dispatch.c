/* From the public calls to the table of an instruction set: checks of sizes, the number of threads that pays, and the
 * floating-point mode of every worker. */
#include "kernels.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

struct frnn_isa {
    const char *name;
    const frnn_kernels *kernels[2]; /* by frnn_dtype */
};

#define ISA(name, usable) extern const frnn_kernels frnn_##name##_f32, frnn_##name##_f64;
#include "isas.def"
#undef ISA

#define ISA(name, usable) {#name, {&frnn_##name##_f32, &frnn_##name##_f64}},
static const frnn_isa isas[] = {
#include "isas.def"
};
#undef ISA

enum { ISAS = sizeof isas / sizeof *isas };

static int usable(int row) {
    const int answers[ISAS] = {
#define ISA(name, usable) (usable) != 0,
#include "isas.def"
#undef ISA
    };
    return answers[row];
}

const frnn_isa *frnn_isa_at(int index) {
    for (int row = 0; row < ISAS && index >= 0; ++row) {
        if (usable(row) && index-- == 0) return &isas[row];
    }
    return NULL;
}

const char *frnn_isa_name(const frnn_isa *isa) { return isa->name; }

static const char *const cells[] = {
#define CELL(name, equations, variant) #name,
#include "cells/cells.def"
#undef CELL
};

enum { CELLS = sizeof cells / sizeof *cells };

const char *frnn_cell_name(int cell) { return cell >= 0 && cell < CELLS ? cells[cell] : NULL; }

/* Every object knows the shapes, and the last row of the table is always there. */
frnn_shape frnn_layer_shape(const frnn_layer *layer) {
    return isas[ISAS - 1].kernels[layer->dtype == FRNN_F64 ? FRNN_F64 : FRNN_F32]->shape(layer);
}

/* Flush-to-zero and denormals-are-zero: a gradient that vanishes passes through denormal numbers, which many processors
 * handle a hundred times slower. Set for a worker's job and then put back. */
#if defined(__x86_64__)
static uint64_t flush_denormals(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040u);
    return before;
}
static void restore(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static uint64_t flush_denormals(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    return before;
}
static void restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static uint64_t flush_denormals(void) { return 0; }
static void restore(uint64_t before) { (void)before; }
#endif

typedef struct {
    void (*work)(void *job, const frnn_worker *worker);
    frnn_job *job;
} flushed_work;

static void work_flushed(void *argument, const frnn_worker *worker) {
    const flushed_work *f = argument;
    const uint64_t before = flush_denormals();
    if (worker->caller) f->job->fp_mode = before;
    f->work(f->job, worker);
    atomic_thread_fence(memory_order_seq_cst); /* for stores past the caches, which other orderings let pass */
    restore(before);
}

/* Between two questions: to ask can take as long as a lock of the caller's, and people wait for some tenths of a second
 * at most. */
#define ASK_EVERY 5e7 /* ns */

int frnn_asks(frnn_job *job) {
    const double now = frnn_now();
    if (job->asked == 0) job->asked = now; /* the first time the call has but begun */
    if (!job->interrupt || !job->interrupt->should_stop || now - job->asked < ASK_EVERY) return 0;
    job->asked = now;
    restore(job->fp_mode);
    const int answer = job->interrupt->should_stop(job->interrupt->context);
    flush_denormals();
    return answer;
}

/* Below this many multiply-adds a call is over before another thread has woken; and a step, before one that spins has
 * taken it up. */
#define MACS_EACH 4e6
#define MACS_OF_STEP 1e6
/* In a recurrent product, to read one weight from a cache that cores share takes as long as this many: with fewer
 * sequences that is what takes time. Other products read it once for many steps. */
#define READ_MACS 3

static int useful_threads(int threads, const frnn_layer *layer, const frnn_batch *batch, double passes, double each) {
    double steps = (double)batch->T * (double)batch->B;
    if (batch->lengths) {
        steps = 0;
        for (int64_t b = 0; b < batch->B; ++b) steps += (double)batch->lengths[b];
    }
    const double macs =
        passes * steps * layer->directions * frnn_layer_shape(layer).gates * (double)layer->hidden_size *
        ((double)layer->input_size * (layer->contexts > 0 ? layer->contexts : 1) + (double)layer->hidden_size);
    const double useful = 1 + macs / each;
    return useful < threads ? (int)useful : threads;
}

static frnn_status run(void (*work)(void *, const frnn_worker *), frnn_job *job, int threads, int ready) {
    frnn_run(threads, ready, work_flushed, &(flushed_work){work, job});
    return atomic_load(&job->stopped) ? FRNN_STOPPED : FRNN_OK;
}

/* Sizes are products of a few dims; with every product below 2^56 reals none of them can overflow. */
#define MOST_REALS 72057594037927936.0
_Static_assert(sizeof(size_t) >= 8, "sizes are 64-bit numbers");
#define MOST_COLUMNS 8 /* of H reals that any row has for a unit */

static int dtype_fits(frnn_dtype dtype) { return dtype == FRNN_F32 || dtype == FRNN_F64; }

static int product_fits(frnn_dtype dtype, int64_t M, int64_t K, int64_t N) {
    return dtype_fits(dtype) && M >= 0 && K >= 0 && N >= 0 && ((double)K + 1) * ((double)N + 64) < MOST_REALS &&
           (double)M * ((double)K + (double)N) < MOST_REALS;
}

static int layer_fits(const frnn_layer *layer) {
    const double I = (double)layer->input_size, H = (double)layer->hidden_size;
    if (layer->cell < 0 || layer->cell >= CELLS || !dtype_fits(layer->dtype) ||
        (layer->directions != 1 && layer->directions != 2) || layer->input_size < 1 || layer->hidden_size < 1 ||
        layer->contexts < 0 || (layer->contexts > 0 && !layer->context)) {
        return 0;
    }
    for (int k = 0; k < layer->contexts; ++k) {
        if (layer->context[k] == INT64_MIN) return 0; /* whose opposite there is not */
    }
    const frnn_shape shape = frnn_layer_shape(layer);
    const int projects = shape.h && shape.c; /* a state for the output, beside the one for the units */
    const double taps = layer->contexts > 0 ? layer->contexts : 1;
    return (shape.h || shape.c ? layer->contexts == 0 : layer->contexts > 0) && layer->output_size >= 1 &&
           (projects ? layer->output_size <= layer->hidden_size : layer->output_size == layer->hidden_size) &&
           (I * taps + H + 64) * (H + 64) * MOST_COLUMNS * layer->directions < MOST_REALS;
}

static int batch_fits(const frnn_layer *layer, const frnn_batch *batch, int threads) {
    return batch->T >= 0 && batch->B >= 0 && threads >= 1 && (batch->lengths == NULL || batch->order != NULL) &&
           (double)batch->T * (double)batch->B < MOST_REALS && (batch->whole == NULL || layer->contexts == 0) &&
           ((double)batch->B + (layer->contexts > 0 && batch->B > 0 ? (double)batch->T : 0) + 512) * threads *
                   ((double)layer->input_size + (double)layer->hidden_size + 64) * MOST_COLUMNS <
               MOST_REALS;
}

static const frnn_pass_kernels *kernels_of(const frnn_isa *isa, const frnn_layer *layer, frnn_pass pass) {
    const frnn_kernels *kernels = isa->kernels[layer->dtype];
    return layer->contexts > 0 ? &kernels->context[pass] : &kernels->recurrent[pass];
}

size_t frnn_packed_size(const frnn_isa *isa, const frnn_layer *layer, frnn_pass pass) {
    return layer_fits(layer) ? kernels_of(isa, layer, pass)->packed_size(layer) : 0;
}

frnn_status frnn_pack(const frnn_isa *isa, int threads, const frnn_layer *layer, frnn_pass pass,
                      const frnn_weights weights[], void *packed, const frnn_interrupt *interrupt) {
    if (!layer_fits(layer) || threads < 1) return FRNN_INVALID;
    frnn_job job = {.layer = layer, .weights = weights, .packed = packed, .interrupt = interrupt};
    const frnn_batch one_step = {.T = 1, .B = 1};
    const int useful = useful_threads(threads, layer, &one_step, PACK_MACS, MACS_EACH);
    return run(kernels_of(isa, layer, pass)->pack, &job, useful, useful);
}

size_t frnn_workspace_size(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                           frnn_pass pass) {
    if (!layer_fits(layer) || !batch_fits(layer, batch, threads)) return 0;
    return kernels_of(isa, layer, pass)->workspace_size(layer, batch, threads);
}

static frnn_status call(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                        frnn_pass pass, const void *args, const frnn_record *record, const frnn_interrupt *interrupt) {
    if (!layer_fits(layer) || !batch_fits(layer, batch, threads)) return FRNN_INVALID;
    frnn_job job = {.layer = layer, .batch = batch, .args = args, .record = record, .threads = threads};
    job.interrupt = interrupt;
    const double passes = pass == FRNN_BACKWARD ? 2 : 1;
    const int reads = frnn_layer_shape(layer).R && batch->B > 0 && batch->B < READ_MACS;
    const double costs = passes * (reads ? READ_MACS / (double)batch->B : 1);
    const int useful = useful_threads(threads, layer, batch, costs, MACS_EACH);
    const int ready = batch->T == 1 ? useful_threads(threads, layer, batch, costs, MACS_OF_STEP) : useful;
    return run(kernels_of(isa, layer, pass)->work, &job, useful, ready);
}

frnn_status frnn_forward(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                         const frnn_forward_args *args) {
    return call(isa, threads, layer, batch, FRNN_FORWARD, args, NULL, &args->interrupt);
}

frnn_status frnn_jvp(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                     const frnn_record *record, const frnn_forward_args *tangents) {
    frnn_forward_args args = *tangents;
    args.kept = (frnn_rows){0};
    args.x_copy = args.y_copy = NULL;
    return call(isa, threads, layer, batch, FRNN_FORWARD, &args, record, &args.interrupt);
}

frnn_status frnn_backward(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                          const frnn_backward_args *args) {
    if (layer->contexts > 0 && (!args->gradients || !args->dx.data)) return FRNN_INVALID;
    return call(isa, threads, layer, batch, FRNN_BACKWARD, args, NULL, &args->interrupt);
}

int64_t frnn_chunk_begin(const frnn_layer *layer, const frnn_batch *batch, int64_t end) {
    if (!layer_fits(layer) || layer->contexts > 0) return -1;
    return isas[ISAS - 1].kernels[layer->dtype]->chunk_begin(layer, batch, end);
}

frnn_status frnn_evaluate(const frnn_isa *isa, frnn_dtype dtype, frnn_function function, int64_t n, const void *in,
                          void *out) {
    if (!dtype_fits(dtype) || function < FRNN_EXP || function > FRNN_LOGISTIC || n < 0) return FRNN_INVALID;
    const uint64_t before = flush_denormals();
    isa->kernels[dtype]->evaluate(function, n, in, out);
    restore(before);
    return FRNN_OK;
}

size_t frnn_product_workspace(const frnn_isa *isa, frnn_dtype dtype, int64_t K, int64_t N) {
    if (!product_fits(dtype, 1, K, N)) return 0;
    return isa->kernels[dtype]->product_size(K, N);
}

frnn_status frnn_product(const frnn_isa *isa, frnn_dtype dtype, int64_t M, int64_t K, int64_t N, const void *a,
                         const void *b, void *c, void *workspace) {
    if (!product_fits(dtype, M, K, N)) return FRNN_INVALID;
    const uint64_t before = flush_denormals();
    isa->kernels[dtype]->product(M, K, N, a, b, c, workspace);
    restore(before);
    return FRNN_OK;
}

typedef struct {
    const frnn_kernels *kernels;
    const char *data; /* NULL: multiply-adds */
    int64_t part, rounds;
    _Atomic int64_t done;
} limit_job;

static void limit_work(void *argument, const frnn_worker *w) {
    limit_job *job = argument;
    const uint64_t before = flush_denormals();
    job->done += job->data ? job->kernels->read_loop(job->data + w->id * job->part, job->part, job->rounds)
                           : job->kernels->fma_loop(job->rounds);
    restore(before);
}

int64_t frnn_fma_loop(const frnn_isa *isa, int threads, frnn_dtype dtype, int64_t rounds) {
    if (!dtype_fits(dtype)) return 0;
    limit_job job = {.kernels = isa->kernels[dtype], .rounds = rounds};
    frnn_run(threads, threads, limit_work, &job);
    return job.done;
}

int64_t frnn_read_loop(const frnn_isa *isa, int threads, const void *data, int64_t bytes, int64_t rounds) {
    if (threads < 1) return 0;
    limit_job job = {.kernels = isa->kernels[FRNN_F32], .data = data, .rounds = rounds};
    job.part = bytes / threads / 4096 * 4096;
    frnn_run(threads, threads, limit_work, &job);
    return job.done;
}
