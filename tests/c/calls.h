/* What the calls of a test take: arrays of drawn values, rows, packed weights, and results to compare. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastrnn.h"

typedef struct {
    int64_t T, B, I, H;
    int directions, lengths, ragged;
} shape;

static uint64_t state;

static double uniform(void) { /* in [-1, 1), the same on every machine */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(state >> 11) * 0x1p-52 - 1.0;
}

static void *filled(frnn_dtype dtype, int64_t count, double scale) {
    void *data = malloc((size_t)count * (dtype == FRNN_F32 ? 4 : 8) + (count == 0));
    if (!data) abort();
    for (int64_t i = 0; i < count; ++i) {
        const double value = scale > 0 ? uniform() * scale : 0;
        if (dtype == FRNN_F32) {
            ((float *)data)[i] = (float)value;
        } else {
            ((double *)data)[i] = value;
        }
    }
    return data;
}

static double at(frnn_dtype dtype, const void *data, int64_t i) {
    return dtype == FRNN_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

enum { OUTPUTS = 28 };

/* All results of one call, forward and backward. */
typedef struct {
    void *data[OUTPUTS];
    int64_t count[OUTPUTS];
    int n;
} results;

static void *output(results *r, frnn_dtype dtype, int64_t count) {
    r->count[r->n] = count;
    return r->data[r->n++] = filled(dtype, count, 0);
}

static void release(results *r) {
    for (int i = 0; i < r->n; ++i) free(r->data[i]);
}

static frnn_rows rows_of(void *data, const shape *s, int64_t width, const int64_t *starts) {
    frnn_rows rows = {.data = data, .time_step = s->B * width, .sequence_step = width};
    if (starts) rows = (frnn_rows){.data = data, .time_step = width, .starts = starts};
    return rows;
}

static void *aligned(size_t size) {
    void *data = aligned_alloc(64, (size + 64) / 64 * 64);
    if (!data) abort();
    return data;
}

static void *packed(const frnn_isa *isa, int threads, const frnn_layer *layer, frnn_pass pass,
                    const frnn_weights weights[]) {
    const size_t size = frnn_packed_size(isa, layer, pass);
    void *data = aligned(size), *other = aligned(size);
    memset(data, 1, size);
    memset(other, 2, size);
    if (frnn_pack(isa, threads, layer, pass, weights, data, NULL) != FRNN_OK) abort();
    if (frnn_pack(isa, threads, layer, pass, weights, other, NULL) != FRNN_OK) abort();
    if (memcmp(data, other, size) != 0) abort(); /* every byte of it is written */
    free(other);
    return data;
}

/* The places of a layer's weights in one direction, each filled by fill(..., count, scale). */
static frnn_weights weights_of(const frnn_layer *layer, int d, results *r) {
    const frnn_shape shape = frnn_layer_shape(layer);
    const int64_t I = layer->input_size * (layer->contexts ? layer->contexts : 1), H = layer->hidden_size;
    const int64_t O = layer->output_size, GH = shape.gates * H;
    const int64_t counts[] = {
        GH * I, shape.R ? GH * O : 0, GH, shape.R && d == 0 ? GH : 0, O < H ? O * H : 0, shape.peephole ? 3 * H : 0};
    void *data[6];
    for (int i = 0; i < 6; ++i) {
        data[i] = NULL;
        if (counts[i] == 0) continue;
        data[i] = r ? output(r, layer->dtype, counts[i]) : filled(layer->dtype, counts[i], 1 / sqrt((double)H));
    }
    return (frnn_weights){data[0], data[1], data[2], data[3], data[4], data[5]};
}

static int64_t bytes_of(frnn_dtype dtype, int64_t count) { return count * (dtype == FRNN_F32 ? 4 : 8); }

static void must_equal(frnn_dtype dtype, const void *a, const void *b, int64_t count, const char *what) {
    if (count > 0 && memcmp(a, b, (size_t)bytes_of(dtype, count)) != 0) {
        printf("%s is not what it should be\n", what);
        exit(1);
    }
}
