/* The C library's own test program: every instruction set, element type, cell and number of threads over awkward
 * shapes, forward and backward, in buffers of exactly the documented sizes, so that sanitizers and emulators see every
 * access.
 *
 * With FMA all results must be the same bits; "generic" must be close. The checksum printed last is the same on every
 * processor with FMA. */
#define _POSIX_C_SOURCE 199309L /* nanosleep */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calls.h"

static const shape shapes[] = {
    {0, 2, 3, 4, 1, 0, 0},     {1, 1, 1, 1, 1, 0, 0},      {7, 0, 3, 5, 2, 0, 0},    {5, 3, 17, 33, 2, 0, 0},
    {9, 7, 5, 65, 1, 1, 0},    {9, 7, 5, 16, 2, 1, 1},     {40, 1, 8, 130, 2, 0, 0}, {4, 40, 20, 70, 1, 1, 0},
    {3, 300, 4, 9, 2, 1, 1},   {12, 2, 130, 257, 1, 0, 0}, {300, 1, 3, 20, 1, 1, 0}, {5, 1, 64, 512, 1, 0, 0},
    {20, 5, 24, 130, 1, 0, 0}, {200, 7, 24, 48, 2, 0, 0},  {99, 17, 9, 20, 1, 0, 0}, {200, 40, 5, 18, 2, 1, 1},
};

/* A recurrent layer once more from checkpoints: states at the begins of windows, then each window's record anew and its
 * part of the gradients, from the last one to the first. All bits must be those of one call, which is described by the
 * args. */
static void check_windows(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                          frnn_forward_args forward, frnn_backward_args backward, int64_t rows) {
    enum { WINDOWS = 400 };
    const frnn_dtype dtype = layer->dtype;
    const frnn_shape of = frnn_layer_shape(layer);
    const int64_t D = layer->directions, B = batch->B, H = layer->hidden_size, O = layer->output_size;
    const int64_t h_count = of.h ? D * B * O : 0, c_count = of.c ? D * B * H : 0,
                  kept_width = D * of.kept * of.kept_step;
    int64_t begin[WINDOWS], n = 0;
    char *h = aligned((size_t)bytes_of(dtype, h_count * (WINDOWS + 1)));
    char *c = aligned((size_t)bytes_of(dtype, c_count * (WINDOWS + 1)));
    for (int64_t end = batch->T; end > 0 && n < WINDOWS; end = begin[n++]) {
        begin[n] = frnn_chunk_begin(layer, batch, end);
    }
    if (n == 0 || n == WINDOWS) {
        free(h);
        free(c);
        return;
    }
    frnn_batch window[WINDOWS];
    int64_t *lengths = calloc((size_t)(n * B + 1), sizeof *lengths), steps = 0;
    for (int64_t w = 0; w < n; ++w) { /* the first window is the last of begin */
        const int64_t from = begin[n - 1 - w], to = w + 1 < n ? begin[n - 2 - w] : batch->T;
        window[w] = (frnn_batch){.T = to - from, .B = B, .order = batch->order, .begin = from, .whole = batch};
        for (int64_t b = 0; batch->lengths && b < B; ++b) {
            const int64_t left = batch->lengths[b] - from;
            lengths[w * B + b] = left < 0 ? 0 : left > to - from ? to - from : left;
        }
        if (batch->lengths) window[w].lengths = lengths + w * B;
        if (to - from > steps) steps = to - from;
    }
    const void *y = forward.y.data, *hT = forward.hT, *cT = forward.cT;
    forward.y.data = filled(dtype, rows * D * O, 0);
    forward.kept.data = forward.x_copy = forward.y_copy = NULL;
    if (h_count) memcpy(h, forward.h0, (size_t)bytes_of(dtype, h_count));
    if (c_count) memcpy(c, forward.c0, (size_t)bytes_of(dtype, c_count));
    for (int64_t w = 0; w < n; ++w) {
        forward.h0 = h_count ? h + bytes_of(dtype, w * h_count) : NULL;
        forward.c0 = c_count ? c + bytes_of(dtype, w * c_count) : NULL;
        forward.hT = h_count ? h + bytes_of(dtype, (w + 1) * h_count) : NULL;
        forward.cT = c_count ? c + bytes_of(dtype, (w + 1) * c_count) : NULL;
        if (frnn_forward(isa, threads, layer, &window[w], &forward) != FRNN_OK) abort();
    }
    must_equal(dtype, y, forward.y.data, rows * D * O, "window by window, y");
    must_equal(dtype, hT, forward.hT, h_count, "window by window, h");
    must_equal(dtype, cT, forward.cT, c_count, "window by window, c");
    free(forward.y.data);

    frnn_rows own = {.data = filled(dtype, steps * B * D * O, 0), .time_step = B * D * O, .sequence_step = D * O};
    frnn_rows kept = {.data = NULL, .time_step = B * kept_width, .sequence_step = kept_width};
    if (kept_width) kept.data = filled(dtype, steps * B * kept_width, 0);
    own.in_window = kept.in_window = 1;
    results sums = {.n = 0};
    frnn_weights gradients[2];
    for (int d = 0; d < D; ++d) gradients[d] = weights_of(layer, d, &sums);
    const frnn_weights *whole = backward.gradients;
    const void *dx = backward.dx.data, *dh0 = backward.dh0, *dc0 = backward.dc0;
    void *dh = h_count ? filled(dtype, h_count, 0) : NULL, *dc = c_count ? filled(dtype, c_count, 0) : NULL;
    backward.dx.data = filled(dtype, rows * layer->input_size, 0);
    backward.gradients = gradients;
    backward.record.y = own;
    backward.record.kept = kept;
    backward.dh0 = dh;
    backward.dc0 = dc;
    for (int64_t w = n - 1; w >= 0; --w) {
        forward.h0 = backward.record.h0 = h_count ? h + bytes_of(dtype, w * h_count) : NULL;
        forward.c0 = backward.record.c0 = c_count ? c + bytes_of(dtype, w * c_count) : NULL;
        forward.hT = h_count ? h + bytes_of(dtype, (w + 1) * h_count) : NULL;
        forward.cT = c_count ? c + bytes_of(dtype, (w + 1) * c_count) : NULL;
        forward.y = own;
        forward.kept = kept;
        if (frnn_forward(isa, threads, layer, &window[w], &forward) != FRNN_OK) abort();
        if (frnn_backward(isa, threads, layer, &window[w], &backward) != FRNN_OK) abort();
        backward.dhT = dh;
        backward.dcT = dc;
        backward.add = 1;
    }
    must_equal(dtype, dx, backward.dx.data, rows * layer->input_size, "window by window, dx");
    must_equal(dtype, dh0, dh, h_count, "window by window, dh0");
    must_equal(dtype, dc0, dc, c_count, "window by window, dc0");
    for (int d = 0, i = 0; d < D; ++d) {
        const void *expected[] = {whole[d].W, whole[d].R, whole[d].b_ih, whole[d].b_hh, whole[d].P, whole[d].p};
        for (int j = 0; j < 6; ++j) {
            if (expected[j]) {
                must_equal(dtype, expected[j], sums.data[i], sums.count[i], "window by window, a weight's gradient");
                ++i;
            }
        }
    }
    release(&sums);
    void *spaces[] = {h, c, lengths, own.data, kept.data, dh, dc, backward.dx.data};
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; ++i) free(spaces[i]);
}

/* Gradients of a loss that depends on nothing, added to others, leave these as they are. */
static void check_added(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                        frnn_backward_args backward, int64_t rows) {
    const uint64_t before = state;
    frnn_weights gradients[2], expected[2];
    for (int i = 0; i < 2; ++i) {
        state = before; /* the same values twice */
        for (int d = 0; d < layer->directions; ++d) (i ? expected : gradients)[d] = weights_of(layer, d, NULL);
    }
    backward.gradients = gradients;
    backward.add = 1;
    backward.dy.data = NULL;
    backward.dhT = backward.dcT = NULL;
    backward.dh0 = backward.dc0 = NULL;
    backward.dx.data = filled(layer->dtype, rows * layer->input_size, 0);
    if (frnn_backward(isa, threads, layer, batch, &backward) != FRNN_OK) abort();
    results counts = {.n = 0};
    for (int d = 0, i = 0; d < layer->directions; ++d) {
        const frnn_weights g = gradients[d], e = expected[d];
        void *got[] = {g.W, g.R, g.b_ih, g.b_hh, g.P, g.p}, *all[] = {e.W, e.R, e.b_ih, e.b_hh, e.P, e.p};
        weights_of(layer, d, &counts);
        for (int j = 0; j < 6; ++j) {
            if (got[j]) must_equal(layer->dtype, all[j], got[j], counts.count[i++], "added to, a weight's gradient");
            free(got[j]);
            free(all[j]);
        }
    }
    release(&counts);
    free(backward.dx.data);
}

/* Without initial states the results are those with zeros. */
static void check_no_states(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                            frnn_forward_args forward, frnn_backward_args backward, int64_t rows) {
    enum { RESULTS = 4 };
    const frnn_dtype dtype = layer->dtype;
    const frnn_shape of = frnn_layer_shape(layer);
    const int64_t D = layer->directions, I = layer->input_size, O = layer->output_size;
    const int64_t h_count = of.h ? D * batch->B * O : 0, c_count = of.c ? D * batch->B * layer->hidden_size : 0;
    const int64_t counts[RESULTS] = {rows * D * O, rows * I, rows * D * O, h_count};
    void *h0 = filled(dtype, h_count, 0), *c0 = filled(dtype, c_count, 0), *got[2][RESULTS];
    void *kept = filled(dtype, rows * D * of.kept * of.kept_step, 0);
    results sums[2] = {{.n = 0}, {.n = 0}};
    forward.hT = forward.cT = forward.x_copy = forward.y_copy = backward.dc0 = NULL;
    if (of.kept) forward.kept.data = backward.record.kept.data = kept;
    for (int i = 0; i < 2; ++i) {
        frnn_weights gradients[2];
        for (int d = 0; d < D; ++d) gradients[d] = weights_of(layer, d, &sums[i]);
        for (int k = 0; k < RESULTS; ++k) got[i][k] = filled(dtype, counts[k], 0);
        forward.h0 = backward.record.h0 = i && h_count ? h0 : NULL;
        forward.c0 = backward.record.c0 = i && c_count ? c0 : NULL;
        forward.y.data = backward.record.y.data = got[i][0];
        backward.dx.data = got[i][1];
        backward.dh0 = h_count ? got[i][3] : NULL;
        backward.gradients = gradients;
        if (frnn_forward(isa, threads, layer, batch, &forward) != FRNN_OK) abort();
        if (frnn_backward(isa, threads, layer, batch, &backward) != FRNN_OK) abort();
        frnn_forward_args tangents = {.packed = forward.packed, .workspace = forward.workspace, .x = forward.x};
        tangents.y = forward.y;
        tangents.y.data = got[i][2];
        if (frnn_jvp(isa, threads, layer, batch, &backward.record, &tangents) != FRNN_OK) abort();
    }
    for (int k = 0; k < RESULTS; ++k)
        must_equal(dtype, got[1][k], got[0][k], counts[k], "without initial states, a result");
    for (int k = 0; k < sums[0].n; ++k) {
        must_equal(dtype, sums[1].data[k], sums[0].data[k], sums[0].count[k], "without initial states, a gradient");
    }
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < RESULTS; ++k) free(got[i][k]);
        release(&sums[i]);
    }
    void *spaces[] = {h0, c0, kept};
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; ++i) free(spaces[i]);
}

static results run(const frnn_isa *isa, frnn_dtype dtype, int cell, int project, const shape *s, int threads) {
    static const int64_t context[] = {-2, 0, 3};
    const int64_t D = s->directions;
    frnn_layer layer = {cell, dtype, s->directions, s->I, s->H, project ? (s->H + 2) / 3 : s->H, NULL, 0};
    const frnn_shape of = frnn_layer_shape(&layer);
    if (!of.h && !of.c) {
        layer.context = context;
        layer.contexts = 3;
    }
    const int64_t O = layer.output_size;
    int64_t *lengths = malloc((size_t)(s->B + 1) * sizeof *lengths),
            *order = malloc((size_t)(s->B + 1) * sizeof *order);
    int64_t *starts = calloc((size_t)s->B + 1, sizeof *starts), total = 0, n = 0;
    if (!lengths || !order || !starts) abort();
    for (int64_t b = 0; b < s->B; ++b) lengths[b] = s->lengths ? (b * 7 + 3) % (s->T + 1) : s->T;
    for (int64_t length = s->T; length >= 0; --length) {
        for (int64_t b = 0; b < s->B; ++b) {
            if (lengths[b] == length) order[n++] = b;
        }
    }
    for (int64_t b = 0; b < s->B; ++b) {
        starts[b] = total;
        total += lengths[b];
    }
    const frnn_batch batch = {
        .T = s->T, .B = s->B, .lengths = s->lengths ? lengths : NULL, .order = s->lengths ? order : NULL};
    const int64_t rows = s->ragged ? total : s->T * s->B, *ragged = s->ragged ? starts : NULL;

    state = 42;
    frnn_weights weights[2], gradients[2];
    results r = {.n = 0};
    void *x = filled(dtype, rows * s->I, 1), *dy = filled(dtype, rows * D * O, 1);
    void *h0 = of.h ? filled(dtype, D * s->B * O, 1) : NULL, *dhT = of.h ? filled(dtype, D * s->B * O, 1) : NULL;
    void *c0 = of.c ? filled(dtype, D * s->B * s->H, 1) : NULL, *dcT = of.c ? filled(dtype, D * s->B * s->H, 1) : NULL;
    for (int d = 0; d < D; ++d) {
        weights[d] = weights_of(&layer, d, NULL);
        gradients[d] = weights_of(&layer, d, &r);
    }
    void *x_copy = output(&r, dtype, rows * s->I), *y_copy = output(&r, dtype, rows * D * O);
    void *y = output(&r, dtype, rows * D * O), *dx = output(&r, dtype, rows * s->I);
    void *kept = of.kept ? output(&r, dtype, rows * D * of.kept * of.kept_step) : NULL;
    void *hT = of.h ? output(&r, dtype, D * s->B * O) : NULL, *dh0 = of.h ? output(&r, dtype, D * s->B * O) : NULL;
    void *cT = of.c ? output(&r, dtype, D * s->B * s->H) : NULL,
         *dc0 = of.c ? output(&r, dtype, D * s->B * s->H) : NULL;

    frnn_forward_args forward = {.h0 = h0, .c0 = c0, .hT = hT, .cT = cT};
    forward.packed = packed(isa, threads, &layer, FRNN_FORWARD, weights);
    forward.x = rows_of(x, s, s->I, ragged);
    forward.y = rows_of(y, s, D * O, ragged);
    forward.workspace = aligned(frnn_workspace_size(isa, threads, &layer, &batch, FRNN_FORWARD));
    if (frnn_forward(isa, threads, &layer, &batch, &forward) != FRNN_OK) abort();
    if (of.kept) { /* backward reads what is kept, and keeping it changes nothing else */
        const size_t bytes = (size_t)bytes_of(dtype, rows * D * O);
        void *inferred = aligned(bytes);
        memcpy(inferred, y, bytes);
        forward.kept = rows_of(kept, s, D * of.kept * of.kept_step, ragged);
        forward.x_copy = x_copy;
        forward.y_copy = y_copy;
        if (frnn_forward(isa, threads, &layer, &batch, &forward) != FRNN_OK) abort();
        if (memcmp(inferred, y, bytes) != 0) abort();
        free(inferred);
    }

    frnn_backward_args backward = {.record = {forward.x, forward.y, forward.kept, h0, c0}};
    backward.dhT = dhT;
    backward.dcT = dcT;
    backward.dh0 = dh0;
    backward.dc0 = dc0;
    backward.packed = packed(isa, threads, &layer, FRNN_BACKWARD, weights);
    backward.gradients = gradients;
    backward.dy = rows_of(dy, s, D * O, ragged);
    backward.dx = rows_of(dx, s, s->I, ragged);
    backward.workspace = aligned(frnn_workspace_size(isa, threads, &layer, &batch, FRNN_BACKWARD));
    if (frnn_backward(isa, threads, &layer, &batch, &backward) != FRNN_OK) abort();
    if (!layer.contexts) check_windows(isa, threads, &layer, &batch, forward, backward, rows);
    check_added(isa, threads, &layer, &batch, backward, rows);
    if (!layer.contexts) check_no_states(isa, threads, &layer, &batch, forward, backward, rows);

    /* Tangents: dy stands for those of y, the gradients' arrays for directions. */
    frnn_forward_args tangents = {.packed = forward.packed, .h0 = dhT, .c0 = dcT, .workspace = forward.workspace};
    tangents.x = backward.dx;
    tangents.y = rows_of(output(&r, dtype, rows * D * O), s, D * O, ragged);
    tangents.hT = of.h ? output(&r, dtype, D * s->B * O) : NULL;
    tangents.cT = of.c ? output(&r, dtype, D * s->B * s->H) : NULL;
    if (frnn_jvp(isa, threads, &layer, &batch, &backward.record, &tangents) != FRNN_OK) abort();

    if (!layer.contexts) { /* clipped, and nothing but the gradients of the states wanted */
        backward.clip_step = 0.01;
        backward.gradients = NULL;
        backward.dx.data = NULL;
        backward.dh0 = of.h ? output(&r, dtype, D * s->B * O) : NULL;
        backward.dc0 = of.c ? output(&r, dtype, D * s->B * s->H) : NULL;
        if (frnn_backward(isa, threads, &layer, &batch, &backward) != FRNN_OK) abort();
    }

    void *spaces[] = {(void *)forward.packed, forward.workspace, (void *)backward.packed, backward.workspace};
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; ++i) free(spaces[i]);
    void *inputs[] = {x, dy, h0, dhT, c0, dcT, lengths, order, starts};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; ++i) free(inputs[i]);
    for (int d = 0; d < D; ++d) {
        void *arrays[] = {weights[d].W, weights[d].R, weights[d].b_ih, weights[d].b_hh, weights[d].P, weights[d].p};
        for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) free(arrays[i]);
    }
    return r;
}

/* The largest difference relative to the largest value; 0 only if all bits are the same. */
static double difference(frnn_dtype dtype, const results *a, const results *b) {
    double worst = 0;
    for (int i = 0; i < a->n; ++i) {
        const size_t bytes = (size_t)a->count[i] * (dtype == FRNN_F32 ? 4 : 8);
        double largest = 0, apart = 0;
        if (memcmp(a->data[i], b->data[i], bytes) == 0) continue;
        for (int64_t k = 0; k < a->count[i]; ++k) {
            largest = fmax(largest, fabs(at(dtype, a->data[i], k)));
            apart = fmax(apart, fabs(at(dtype, a->data[i], k) - at(dtype, b->data[i], k)));
        }
        worst = fmax(worst, fmax(apart / fmax(largest, 1), 1e-300));
    }
    return worst;
}

static uint64_t checksum(uint64_t sum, frnn_dtype dtype, const results *r) {
    for (int i = 0; i < r->n; ++i) {
        const unsigned char *byte = r->data[i];
        const int64_t bytes = r->count[i] * (dtype == FRNN_F32 ? 4 : 8);
        for (int64_t k = 0; k < bytes; ++k) sum = (sum ^ byte[k]) * 1099511628211u; /* FNV-1a */
    }
    return sum;
}

/* One cell and shape, in both element types, on every instruction set, with one thread and with six. */
static void compare(int cell, int project, const shape *s, int number, int *passed, int *failed, uint64_t *sum) {
    const frnn_isa *best = frnn_isa_at(0);
    for (frnn_dtype dtype = FRNN_F32; dtype <= FRNN_F64; ++dtype) {
        results first = run(best, dtype, cell, project, s, 1);
        *sum = checksum(*sum, dtype, &first);
        for (int index = 0; frnn_isa_at(index); ++index) {
            const frnn_isa *isa = frnn_isa_at(index);
            const int fused = strcmp(frnn_isa_name(isa), "generic") != 0;
            results single = run(isa, dtype, cell, project, s, 1);
            /* A rounding error of each product, grown by the steps of a linear recurrence. */
            const double bound = fused ? 0 : dtype == FRNN_F32 ? 1e-3 : 1e-12;
            results now = run(isa, dtype, cell, project, s, 6);
            const double from_first = difference(dtype, &first, &now);
            const double from_single = difference(dtype, &single, &now);
            const int good = from_first <= bound && from_single == 0;
            *passed += good;
            *failed += !good;
            if (!good) {
                printf("%s %s%s f%d shape %d: %g from the best, %g from one thread\n", frnn_isa_name(isa),
                       frnn_cell_name(cell), project ? " projected" : "", dtype == FRNN_F32 ? 32 : 64, number,
                       from_first, from_single);
            }
            release(&now);
            release(&single);
        }
        release(&first);
    }
}

/* A stream of single steps, each so short that a second thread takes part only while it spins: the outputs are those of
 * one thread. Now and then it has fallen asleep before, or had a job with more workers than there are processors. */
static int steps_differ(void) {
    enum { STEPS = 200, SIZE = 512, REST = 3000000 /* ns */, MANY = 64 };
    const frnn_isa *isa = frnn_isa_at(0);
    const frnn_layer layer = {0, FRNN_F32, 1, SIZE, SIZE, SIZE, NULL, 0};
    const frnn_batch batch = {.T = 1, .B = 1};
    const frnn_weights weights = weights_of(&layer, 0, NULL);
    const struct timespec rest = {.tv_nsec = REST};
    void *ready = packed(isa, 1, &layer, FRNN_FORWARD, &weights), *workspace[2], *states[2];
    for (int i = 0; i < 2; ++i) {
        workspace[i] = aligned(frnn_workspace_size(isa, 1 + i, &layer, &batch, FRNN_FORWARD));
        states[i] = filled(FRNN_F32, SIZE * (STEPS + 1), 0);
    }
    for (int t = 0; t < STEPS; ++t) {
        for (int i = 0; i < 2; ++i) {
            float *h = (float *)states[i] + t * SIZE;
            const frnn_rows x = {.data = weights.W, .time_step = SIZE, .sequence_step = SIZE};
            const frnn_rows y = {.data = h + SIZE, .time_step = SIZE, .sequence_step = SIZE};
            const frnn_forward_args args = {
                .packed = ready, .x = x, .y = y, .h0 = h, .hT = h + SIZE, .workspace = workspace[i]};
            if (frnn_forward(isa, 1 + i, &layer, &batch, &args) != FRNN_OK) abort();
        }
        if (t % 50 == 30) nanosleep(&rest, NULL);
        if (t % 50 == 40) frnn_fma_loop(isa, MANY, FRNN_F32, 1);
    }
    const int differ = memcmp(states[0], states[1], sizeof(float) * SIZE * (STEPS + 1)) != 0;
    if (differ) puts("steps: two threads do not give the bits of one");
    for (int i = 0; i < 2; ++i) {
        free(workspace[i]);
        free(states[i]);
    }
    const void *arrays[] = {weights.W, weights.R, weights.b_ih, weights.b_hh, ready};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) free((void *)arrays[i]);
    return differ;
}

static int stop(void *asked) {
    ++*(int *)asked;
    return 1;
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

/* To pack large weights can take long, in few large pieces or in many small ones, and then ends when it is told to. */
static int packing_goes_on(void) {
    enum { MANY = 500000, FEW = 64, SIZE = 2000, LONG = 80 /* ms */ };
    int slowest = 0, wrong = 0;
    while (frnn_isa_at(slowest + 1)) ++slowest;
    const frnn_isa *isa = frnn_isa_at(slowest);
    for (int i = 0; i < 4; ++i) {
        frnn_layer layer = {0, FRNN_F32, 1, SIZE, SIZE, SIZE, NULL, 0};
        while (i < 2 && strcmp(frnn_cell_name(layer.cell), "lstm") != 0) ++layer.cell;
        if (i >= 2) layer = (frnn_layer){0, FRNN_F32, 1, MANY, FEW, FEW, NULL, 0};
        const frnn_pass pass = i % 2 ? FRNN_BACKWARD : FRNN_FORWARD;
        const frnn_weights weights = weights_of(&layer, 0, NULL);
        void *ready = aligned(frnn_packed_size(isa, &layer, pass));
        int asked = 0;
        const frnn_interrupt interrupt = {stop, &asked};
        double took = 0;
        for (int cold = 1; cold >= 0; --cold) {
            took = milliseconds();
            wrong += frnn_pack(isa, 1, &layer, pass, &weights, ready, NULL) != FRNN_OK;
            took = milliseconds() - took;
        }
        const frnn_status status = frnn_pack(isa, 1, &layer, pass, &weights, ready, &interrupt);
        wrong += status != (asked ? FRNN_STOPPED : FRNN_OK) || asked > 1 || (asked == 0 && took > LONG);
        const void *arrays[] = {weights.W, weights.R, weights.b_ih, weights.b_hh, ready};
        for (size_t k = 0; k < sizeof arrays / sizeof *arrays; ++k) free((void *)arrays[k]);
    }
    if (wrong) puts("packing goes on when it is told to stop");
    return wrong;
}

/* Layers that there are not need no memory, and are refused. */
static int takes_invalid(void) {
    const int64_t none = 0, farthest = INT64_MIN; /* which has no opposite, for the second direction */
    int tdnn = 0, wrong = 0;
    while (strcmp(frnn_cell_name(tdnn), "tdnn_tanh") != 0) ++tdnn;
    const frnn_layer invalid[] = {{-1, FRNN_F32, 1, 2, 3, 3, NULL, 0},   {0, FRNN_F32, 3, 2, 3, 3, NULL, 0},
                                  {0, FRNN_F32, 1, 0, 3, 3, NULL, 0},    {0, FRNN_F32, 1, 2, 3, 4, NULL, 0},
                                  {0, FRNN_F32, 1, 2, 3, 3, &none, 1},   {tdnn, FRNN_F32, 1, 2, 3, 3, NULL, 0},
                                  {tdnn, FRNN_F32, 1, 2, 3, 3, NULL, 1}, {tdnn, FRNN_F32, 2, 2, 3, 3, &farthest, 1}};
    const frnn_layer valid = {tdnn, FRNN_F32, 2, 2, 3, 3, &none, 1};
    const frnn_batch batch = {.T = 4, .B = 2};
    const frnn_isa *isa = frnn_isa_at(0);
    for (int p = 0; p < 2; ++p) {
        const frnn_pass pass = p ? FRNN_BACKWARD : FRNN_FORWARD;
        for (size_t i = 0; i < sizeof invalid / sizeof *invalid; ++i) {
            const frnn_layer *layer = &invalid[i];
            wrong += frnn_packed_size(isa, layer, pass) != 0 || frnn_workspace_size(isa, 2, layer, &batch, pass) != 0 ||
                     frnn_pack(isa, 1, layer, pass, NULL, NULL, NULL) != FRNN_INVALID;
        }
        wrong += !frnn_packed_size(isa, &valid, pass) || !frnn_workspace_size(isa, 2, &valid, &batch, pass);
    }
    if (wrong) puts("a layer that there is not is taken");
    return wrong;
}

int main(void) {
    int passed = 0, failed = steps_differ() + packing_goes_on() + takes_invalid();
    passed += !failed;
    uint64_t sum = 14695981039346656037u;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        for (int cell = 0; frnn_cell_name(cell); ++cell) {
            const frnn_layer layer = {cell, FRNN_F32, 1, 1, 1, 1, NULL, 0};
            const frnn_shape of = frnn_layer_shape(&layer);
            compare(cell, 0, &shapes[i], (int)i, &passed, &failed, &sum);
            if (of.h && of.c && shapes[i].H > 1) compare(cell, 1, &shapes[i], (int)i, &passed, &failed, &sum);
        }
    }
    printf("checksum %016llx on %s\n", (unsigned long long)sum, frnn_isa_name(frnn_isa_at(0)));
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
