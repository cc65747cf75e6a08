/* fastrnn: recurrent layers on the CPU, forward and reverse (back-propagation through time). C11, no dependencies but
 * POSIX threads.
 *
 * Letters: T time steps, B sequences, I inputs, H hidden units, O outputs of a direction, G gates, D directions.
 * Matrices are row-major; a real is a float or a double as the layer's dtype says. No function allocates memory, but
 * for the team of threads, which grows to the largest number asked for (and the system's files on the quota of this
 * process, which are read once): the caller asks for the size of the workspace and hands one over, aligned to 64 bytes,
 * like packed weights; all other arrays are aligned to their reals. `threads` is the most that a call may use, no more
 * than its workspace was made for. Every function may be called from several threads. */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    FRNN_OK = 0,
    FRNN_INVALID = 1, /* an argument is out of its range */
    FRNN_STOPPED = 2, /* should_stop said so; outputs are incomplete */
} frnn_status;

typedef enum { FRNN_F32 = 0, FRNN_F64 = 1 } frnn_dtype;

/* An instruction set that this library was built for. They are numbered from 0, best first. */
typedef struct frnn_isa frnn_isa;
const frnn_isa *frnn_isa_at(int index); /* NULL beyond the last one that this processor runs */
const char *frnn_isa_name(const frnn_isa *isa);

/* Cells are numbered by the rows of cells/cells.def. */
const char *frnn_cell_name(int cell); /* NULL beyond the last */

/* Processors this process may use: its affinity, and the quota of its control groups. */
int frnn_processors(void);

/* One layer. */
typedef struct {
    int cell;
    frnn_dtype dtype;
    int directions;                  /* 1 or 2; the second reads every sequence from its last step to its first */
    int64_t input_size, hidden_size; /* I, H (not so named, for complex.h makes a macro of I) */
    int64_t output_size;             /* O: H, or less for an LSTM whose outputs are projected */
    const int64_t *context;          /* TDNN: the steps, relative to its own, that an output reads; */
    int contexts;                    /* how many they are; 0 for all other cells */
} frnn_layer;

/* What a layer's arrays depend on. */
typedef struct {
    int gates;         /* G: a weight matrix has G*H rows */
    int kept;          /* K: columns, each of H, of the record that backward needs of every step; 0: none */
    int64_t kept_step; /* N: from one of them to the next, in reals; at least H */
    int h, c;          /* has it a state h (D, B, O); a state c (D, B, H)? */
    int R, peephole;   /* has it R, and with it b_hh; has it p? */
} frnn_shape;
frnn_shape frnn_layer_shape(const frnn_layer *layer);

/* One batch of sequences; or a window on one, the steps [begin, begin + T) of `whole` in the order in which each
 * direction reads them, with each sequence's part of its length (recurrent layers only). Window after window, states
 * handed on, gives the bits of one call. */
typedef struct frnn_batch {
    int64_t T, B;
    const int64_t *lengths; /* (B,), 0..T; NULL: every length is T */
    const int64_t *order;   /* (B,), the sequences by descending length; NULL only if lengths is */
    int64_t begin;
    const struct frnn_batch *whole; /* NULL: this is no window */
} frnn_batch;

/* A value for each step of each sequence: the row of step t of sequence b begins at
 * data + t * time_step + (starts ? starts[b] * time_step : b * sequence_step), in reals. */
typedef struct {
    void *data;
    int64_t time_step, sequence_step;
    const int64_t *starts; /* (B,): a ragged batch, the sequences one after another */
    int in_window;         /* the window's steps alone, in reading order: t counts from its begin */
} frnn_rows;

/* The weights of one direction, or their gradients. */
typedef struct {
    void *W;           /* (G*H, I); TDNN: (H, contexts, I) */
    void *R;           /* (G*H, O) */
    void *b_ih, *b_hh; /* (G*H,), or NULL */
    void *P;           /* (O, H), if O < H */
    void *p;           /* (3*H,), peepholes of i, f, o */
} frnn_weights;

/* Called now and then on the calling thread during a long call; not 0: stop. It may make calls, which that thread runs
 * alone. A child process that it forks is not to come back from it. */
typedef struct {
    int (*should_stop)(void *context);
    void *context;
} frnn_interrupt;

/* Weights prepared for one kind of call; they serve any number of them on the instruction set that packed them. */
typedef enum { FRNN_FORWARD = 0, FRNN_BACKWARD = 1 } frnn_pass;

/* Bytes; 0: the layer is invalid or too large. The interrupt may be NULL. */
size_t frnn_packed_size(const frnn_isa *isa, const frnn_layer *layer, frnn_pass pass);
frnn_status frnn_pack(const frnn_isa *isa, int threads, const frnn_layer *layer, frnn_pass pass,
                      const frnn_weights weights[], void *packed, const frnn_interrupt *interrupt);

/* Bytes of workspace for one call; 0: the layer or batch is invalid or too large. */
size_t frnn_workspace_size(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                           frnn_pass pass);

/* One layer over a batch. Rows of y hold the D*O outputs of a step; rows past a sequence's length are left alone. When
 * D = 1 and I = O, and the cell is recurrent, y may be x. A state that the cell does not have is NULL; h0 or c0 NULL
 * is zero, hT or cT not wanted. */
typedef struct {
    const void *packed;    /* of FRNN_FORWARD */
    frnn_rows x, y;        /* rows of I, of D*O */
    frnn_rows kept;        /* rows of D*K*N: what backward needs; data NULL: nothing is kept */
    void *x_copy, *y_copy; /* laid out as x and y: each row is copied here while it is in cache; or NULL */
    const void *h0, *c0;   /* (D, B, O), (D, B, H) */
    void *hT, *cT;         /* the same after each sequence's last step; they may be h0 and c0 */
    frnn_interrupt interrupt;
    void *workspace;
} frnn_forward_args;

frnn_status frnn_forward(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                         const frnn_forward_args *args);

/* What forward read and wrote, as it was then: where derivatives are taken. */
typedef struct {
    frnn_rows x, y, kept;
    const void *h0, *c0; /* NULL: zero */
} frnn_record;

/* The directional derivative (a Jacobian-vector product): forward once more, with tangents for all but the weights,
 * which are constants. x.data NULL, h0 or c0 NULL: zero; kept and the copies are not used. The workspace is
 * forward's. */
frnn_status frnn_jvp(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                     const frnn_record *record, const frnn_forward_args *tangents);

/* The gradients of a loss J, from dJ/dy at every step and the gradients of the last states. */
typedef struct {
    const void *packed; /* of FRNN_BACKWARD */
    frnn_record record;
    frnn_rows dy;                  /* rows of D*O; data NULL: zero */
    const void *dhT, *dcT;         /* (D, B, O), (D, B, H), or NULL: zero */
    frnn_rows dx;                  /* rows of I; overwritten if D = 1, else added to */
    void *dh0, *dc0;               /* (D, B, O), (D, B, H), overwritten; they may be dhT and dcT */
    const frnn_weights *gradients; /* (D,). A recurrent layer's, or any of them, and dx.data may be NULL: not wanted */
    int add;                       /* whether gradients are added to (by a window, from the last to the first) */
    double clip_step;              /* 0, or what passes from a step to the one before is clipped to [-clip, clip] */
    frnn_interrupt interrupt;
    void *workspace;
} frnn_backward_args;

frnn_status frnn_backward(const frnn_isa *isa, int threads, const frnn_layer *layer, const frnn_batch *batch,
                          const frnn_backward_args *args);

/* Backward adds to the gradients chunk by chunk, from the end. Windows that are to give the bits of one call begin
 * where a chunk does: at 0, at T, or where the chunk begins that ends before step `end`, itself 0, T or a begin; -1:
 * the layer is invalid or not recurrent. */
int64_t frnn_chunk_begin(const frnn_layer *layer, const frnn_batch *batch, int64_t end);

/* The parts, for tests: out = function(in), elementwise, n reals; and c (M, N) = a (M, K) b (K, N), whose workspace is
 * frnn_product_workspace bytes (0: none, or the sizes are invalid). */
typedef enum { FRNN_EXP = 0, FRNN_TANH = 1, FRNN_LOGISTIC = 2 } frnn_function;
frnn_status frnn_evaluate(const frnn_isa *isa, frnn_dtype dtype, frnn_function function, int64_t n, const void *in,
                          void *out);
size_t frnn_product_workspace(const frnn_isa *isa, frnn_dtype dtype, int64_t K, int64_t N);
frnn_status frnn_product(const frnn_isa *isa, frnn_dtype dtype, int64_t M, int64_t K, int64_t N, const void *a,
                         const void *b, void *c, void *workspace);

/* The limits of the machine, to be timed by the caller: on each of `threads` workers, `rounds` turns of fused
 * multiply-adds in registers, or reads of the worker's part of data (a part is a multiple of 4096 bytes). Returned is
 * what was done in all: operations, bytes. */
int64_t frnn_fma_loop(const frnn_isa *isa, int threads, frnn_dtype dtype, int64_t rounds);
int64_t frnn_read_loop(const frnn_isa *isa, int threads, const void *data, int64_t bytes, int64_t rounds);

#ifdef __cplusplus
}
#endif

#endif
