/* What dispatch.c and the objects of the instruction sets share: the jobs, and the table each object exports. */
#ifndef FRNN_KERNELS_H
#define FRNN_KERNELS_H

#include <stdatomic.h>

#include "fastrnn.h"
#include "threads.h"

/* A call on its way: frnn_forward, frnn_jvp, frnn_backward or frnn_pack. */
typedef struct {
    const frnn_layer *layer;
    const frnn_batch *batch;
    const void *args;          /* frnn_forward_args or frnn_backward_args */
    const frnn_record *record; /* with frnn_forward_args: these are tangents */
    int threads;               /* no more than the workspace was made for */
    const frnn_weights *weights;
    void *packed;
    const frnn_interrupt *interrupt;
    atomic_int stopped, leaving[FRNN_GROUPS];
    /* The caller's, on a cache line that the others do not read: */
    _Alignas(64) double macs; /* multiply-adds since it last looked at the clock; */
    double asked;             /* when it last asked whether to stop, or 0; */
    uint64_t fp_mode;         /* the floating-point mode of the caller, whose thread it runs on */
} frnn_job;

/* For the caller's worker: should the call end? The interrupt is asked now and then, in the caller's floating-point
 * mode. */
int frnn_asks(frnn_job *job);

/* To pack one weight takes as long as this many multiply-adds. */
enum { PACK_MACS = 32 };

/* A pass over a layer's steps. Sizes are in bytes. */
typedef struct {
    size_t (*packed_size)(const frnn_layer *layer);
    void (*pack)(void *job, const frnn_worker *worker);
    size_t (*workspace_size)(const frnn_layer *layer, const frnn_batch *batch, int threads);
    void (*work)(void *job, const frnn_worker *worker);
} frnn_pass_kernels;

/* One table for each instruction set and element type, the only symbol its object exports. */
typedef struct {
    frnn_shape (*shape)(const frnn_layer *layer);
    frnn_pass_kernels recurrent[2], context[2]; /* by frnn_pass */
    int64_t (*chunk_begin)(const frnn_layer *layer, const frnn_batch *batch, int64_t end);
    void (*evaluate)(frnn_function function, int64_t n, const void *in, void *out);
    size_t (*product_size)(int64_t K, int64_t N);
    void (*product)(int64_t M, int64_t K, int64_t N, const void *a, const void *b, void *c, void *workspace);
    int64_t (*fma_loop)(int64_t rounds);
    int64_t (*read_loop)(const void *data, int64_t bytes, int64_t rounds);
} frnn_kernels;

#endif
