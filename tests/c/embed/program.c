/* A program of another project: running sums by an Elman layer of one unit, whose function is the identity. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fastrnn.h>

static void *block(size_t bytes) { return bytes > 0 ? aligned_alloc(64, (bytes + 63) / 64 * 64) : NULL; }

int main(void) {
    const float one = 1, x[] = {1, 2, 3, 4, 5}, want[] = {1, 3, 6, 10, 15};
    const int64_t T = sizeof x / sizeof *x;
    const int threads = frnn_processors();
    const frnn_isa *isa = frnn_isa_at(0);
    frnn_layer layer = {.dtype = FRNN_F32, .directions = 1, .input_size = 1, .hidden_size = 1, .output_size = 1};
    while (frnn_cell_name(layer.cell) && strcmp(frnn_cell_name(layer.cell), "rnn_identity") != 0) ++layer.cell;
    const frnn_batch batch = {.T = T, .B = 1};
    const frnn_weights weights = {.W = (void *)&one, .R = (void *)&one};
    float y[sizeof x / sizeof *x];

    void *packed = block(frnn_packed_size(isa, &layer, FRNN_FORWARD));
    void *workspace = block(frnn_workspace_size(isa, threads, &layer, &batch, FRNN_FORWARD));
    if (!packed || !workspace || frnn_pack(isa, threads, &layer, FRNN_FORWARD, &weights, packed, NULL) != FRNN_OK)
        return 2;
    const frnn_forward_args args = {.packed = packed,
                                    .workspace = workspace,
                                    .x = {.data = (void *)x, .time_step = 1, .sequence_step = 1},
                                    .y = {.data = y, .time_step = 1, .sequence_step = 1}};
    if (frnn_forward(isa, threads, &layer, &batch, &args) != FRNN_OK) return 2;
    printf("%s:", frnn_isa_name(isa));
    for (int64_t t = 0; t < T; ++t) printf(" %g", (double)y[t]);
    printf("\n");
    free(packed);
    free(workspace);
    return memcmp(y, want, sizeof y) != 0;
}
