"""What of fastrnn.h the binding uses."""

cdef extern from "fastrnn.h" nogil:
    ctypedef enum frnn_status:
        FRNN_OK
        FRNN_INVALID
        FRNN_STOPPED
    ctypedef enum frnn_dtype:
        FRNN_F32
        FRNN_F64
    ctypedef enum frnn_function:
        FRNN_EXP
        FRNN_TANH
        FRNN_LOGISTIC
    ctypedef struct frnn_isa:
        pass
    ctypedef struct frnn_layer:
        int cell
        frnn_dtype dtype
        int directions
        int64_t input_size, hidden_size, output_size
        const int64_t *context
        int contexts
    ctypedef struct frnn_shape:
        int gates, kept, h, c, R, peephole
        int64_t kept_step
    ctypedef struct frnn_batch:
        int64_t T, B
        const int64_t *lengths
        const int64_t *order
        int64_t begin
        const frnn_batch *whole
    ctypedef struct frnn_rows:
        void *data
        int64_t time_step, sequence_step
        const int64_t *starts
        int in_window
    ctypedef struct frnn_weights:
        void *W
        void *R
        void *b_ih
        void *b_hh
        void *P
        void *p
    ctypedef struct frnn_interrupt:
        int (*should_stop)(void *context) noexcept
        void *context
    ctypedef enum frnn_pass:
        FRNN_FORWARD
        FRNN_BACKWARD
    ctypedef struct frnn_forward_args:
        const void *packed
        frnn_rows x, y, kept
        void *x_copy
        void *y_copy
        const void *h0
        const void *c0
        void *hT
        void *cT
        frnn_interrupt interrupt
        void *workspace
    ctypedef struct frnn_record:
        frnn_rows x, y, kept
        const void *h0
        const void *c0
    ctypedef struct frnn_backward_args:
        const void *packed
        frnn_record record
        frnn_rows dy
        const void *dhT
        const void *dcT
        frnn_rows dx
        void *dh0
        void *dc0
        const frnn_weights *gradients
        int add
        double clip_step
        frnn_interrupt interrupt
        void *workspace

    const frnn_isa *frnn_isa_at(int index)
    const char *frnn_isa_name(const frnn_isa *isa)
    const char *frnn_cell_name(int cell)
    frnn_shape frnn_layer_shape(const frnn_layer *layer)
    int frnn_processors()
    size_t frnn_packed_size(const frnn_isa *isa, const frnn_layer *layer, frnn_pass which)
    frnn_status frnn_pack(const frnn_isa *isa, int threads, const frnn_layer *layer, frnn_pass which,
                          const frnn_weights *weights, void *packed, const frnn_interrupt *interrupt)
    size_t frnn_workspace_size(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                               frnn_pass which)
    frnn_status frnn_forward(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                             const frnn_forward_args *args)
    frnn_status frnn_backward(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                              const frnn_backward_args *args)
    frnn_status frnn_jvp(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                         const frnn_record *record, const frnn_forward_args *tangents)
    int64_t frnn_chunk_begin(const frnn_layer *layer, const frnn_batch *batch, int64_t end)
    frnn_status frnn_evaluate(const frnn_isa *isa, frnn_dtype dtype, frnn_function function, int64_t n, const void *inp,
                              void *out)
    size_t frnn_product_workspace(const frnn_isa *isa, frnn_dtype dtype, int64_t K, int64_t N)
    frnn_status frnn_product(const frnn_isa *isa, frnn_dtype dtype, int64_t M, int64_t K, int64_t N, const void *a,
                             const void *b, void *c, void *workspace)
    int64_t frnn_fma_loop(const frnn_isa *isa, int threads, frnn_dtype dtype, int64_t rounds)
    int64_t frnn_read_loop(const frnn_isa *isa, int threads, const void *data, int64_t bytes, int64_t rounds)
