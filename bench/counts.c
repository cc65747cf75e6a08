/* One layer packed, run forward and run backward on one thread, in float32: `counts ISA CELL TxBxIxH`. counts.py runs
 * it under callgrind, which counts the instructions of each call of frnn_pack, frnn_forward and frnn_backward, in the
 * order in which they stand here. Without arguments it prints the compiler that built the library.
 *
 * No kernel branches on a value, so any data will do. It is taken from one static block: its alignment, on which the C
 * library's copies depend, is the same in every run. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastrnn.h"

static _Alignas(64) unsigned char memory[1 << 24];
static size_t used;

static void fail(const char *what) {
    fprintf(stderr, "counts: %s\n", what);
    exit(2);
}

static void *space(size_t bytes) {
    if (bytes == 0 || bytes > sizeof memory - used) fail("no space");
    void *data = memory + used;
    used += (bytes + 63) / 64 * 64;
    return data;
}

static float *reals(int64_t count) {
    float *data = space((size_t)count * sizeof *data);
    for (int64_t i = 0; i < count; ++i) data[i] = (float)(i % 17 - 8) / 64;
    return data;
}

static frnn_weights weights_of(int64_t GH, int64_t I, int64_t H) {
    return (frnn_weights){.W = reals(GH * I), .R = reals(GH * H), .b_ih = reals(GH), .b_hh = reals(GH)};
}

static frnn_rows rows_of(const frnn_batch *batch, int64_t width) {
    void *data = reals(batch->T * batch->B * width);
    return (frnn_rows){.data = data, .time_step = batch->B * width, .sequence_step = width};
}

static const frnn_isa *isa_named(const char *name) {
    for (int i = 0; frnn_isa_at(i); ++i) {
        if (strcmp(frnn_isa_name(frnn_isa_at(i)), name) == 0) return frnn_isa_at(i);
    }
    fail("this processor does not run that instruction set");
    return NULL;
}

static int cell_named(const char *name) {
    for (int i = 0; frnn_cell_name(i); ++i) {
        if (strcmp(frnn_cell_name(i), name) == 0) return i;
    }
    fail("no such cell");
    return -1;
}

int main(int argc, char **argv) {
    if (argc != 4) return puts(FRNN_COMPILER) < 0;
    const frnn_isa *isa = isa_named(argv[1]);
    frnn_batch batch = {.lengths = NULL};
    int64_t I, H;
    const char *format = "%" SCNd64 "x%" SCNd64 "x%" SCNd64 "x%" SCNd64;
    if (sscanf(argv[3], format, &batch.T, &batch.B, &I, &H) != 4) fail("no such shape");
    const int64_t BH = batch.B * H;
    const frnn_layer layer = {cell_named(argv[2]), FRNN_F32, 1, I, H, H, NULL, 0};
    const frnn_shape of = frnn_layer_shape(&layer);
    const frnn_weights weights = weights_of(of.gates * H, I, H), gradients = weights_of(of.gates * H, I, H);

    void *packed[2], *workspace[2];
    for (frnn_pass pass = FRNN_FORWARD; pass <= FRNN_BACKWARD; ++pass) {
        packed[pass] = space(frnn_packed_size(isa, &layer, pass));
        workspace[pass] = space(frnn_workspace_size(isa, 1, &layer, &batch, pass));
        if (frnn_pack(isa, 1, &layer, pass, &weights, packed[pass], NULL) != FRNN_OK) fail("frnn_pack");
    }

    frnn_forward_args forward = {.packed = packed[0], .workspace = workspace[0]};
    forward.x = rows_of(&batch, I);
    forward.y = rows_of(&batch, H);
    forward.h0 = reals(BH);
    forward.hT = reals(BH);
    forward.c0 = of.c ? reals(BH) : NULL;
    forward.cT = of.c ? reals(BH) : NULL;
    if (frnn_forward(isa, 1, &layer, &batch, &forward) != FRNN_OK) fail("frnn_forward");
    if (of.kept) forward.kept = rows_of(&batch, of.kept * of.kept_step);
    if (frnn_forward(isa, 1, &layer, &batch, &forward) != FRNN_OK) fail("frnn_forward, keeping");

    frnn_backward_args backward = {.packed = packed[1], .workspace = workspace[1], .gradients = &gradients};
    backward.record = (frnn_record){forward.x, forward.y, forward.kept, forward.h0, forward.c0};
    backward.dy = rows_of(&batch, H);
    backward.dx = rows_of(&batch, I);
    backward.dh0 = reals(BH);
    backward.dc0 = of.c ? reals(BH) : NULL;
    if (frnn_backward(isa, 1, &layer, &batch, &backward) != FRNN_OK) fail("frnn_backward");
    return 0;
}
