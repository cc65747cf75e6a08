/* What follows the product: a cell's equations on every vector of a tile. A cell says in its cell_shape what it takes
 * and gives; the loops here load and store it. A tile holds `vecs` vectors of hidden units, the last of them perhaps in
 * part: all lanes are computed, and those below n are stored in the output, the record and the deltas.
 *
 * In a row of pre-activations the columns stand a_column apart, without gaps: past a column's units come those of the
 * next one. In reverse a row has one column, dh_t, in whole vectors. */

enum { NONE = -1, COLUMNS = 4, KEPT = 5, OUTPUT = 2, PASSED = 2 };

typedef struct {
    int gates;          /* G: blocks of H rows in W, R and the biases */
    int columns;        /* of pre-activations, and of deltas, for each unit */
    int block[COLUMNS]; /* the gate whose weights a column takes */
    int x;              /* how many columns take W x_t, from the first one on */
    int h_first, h;     /* those that take R h_{t-1} */
    int input;          /* the function applied to x_t before the product */
    int h_in_forward;   /* do the equations take h_{t-1} itself? */
    int h_in_reverse;   /* and in reverse; */
    int y_in_reverse;   /* or y_t? */
    int running_sum;    /* is h_t = h_{t-1} + a_t all there is, with no c and no record? */
    int direct;         /* does a gradient go from step to step past the products? It begins as dJ/dcT */
    int kept;           /* columns of the record of a step */
    unsigned given[3];  /* bit by bit: those that each stage of the equations gives, */
    unsigned lasting;   /* and those needed later in forward, even when there is no backward to come */
    int output;         /* do the equations find the output in a stage, OUTPUT, of its own */
    int passed[PASSED]; /* from these columns of the record? */
    int c;              /* the record's column that is the state c_t, or NONE */
    int second;         /* the record's column that a second stage multiplies (by R for the columns past h), or NONE */
    unsigned deltas[2]; /* with two stages: the columns of deltas that each stage of the derivative gives */
    int peephole;       /* has it peepholes? */
    int peephole_of[3]; /* the columns of i, f, o that they act on, or NONE */
} cell_shape;

typedef struct {
    vec a[COLUMNS]; /* pre-activations */
    vec h, c;       /* h_{t-1}, c_{t-1}; the equations put the output h_t in h */
    vec p[3];       /* peepholes */
    vec kept[KEPT]; /* the record */
} forward_values;

typedef struct {
    vec dh;             /* dJ/dh_t: from dy_t and through the product */
    vec direct;         /* the gradient that comes past the product, and what the equations pass on to step t - 1 */
    vec y, h, c;        /* y_t, h_{t-1}, c_{t-1} */
    vec p[3];           /* peepholes */
    vec kept[KEPT];     /* the record of forward */
    vec delta[COLUMNS]; /* dJ/da_t */
} reverse_values;

#include "../cells/elman.h"

#include "../cells/lstm.h"

#include "../cells/gru.h"

#include "../cells/cec.h"

#include "../cells/tdnn.h"

/* The first n columns of a tile's rows to where they belong, `step` from row to row; or added to what is there. */
INLINE void put_tile(const real *tile, int rows, int vecs, real *out, int64_t step, int64_t n, int add) {
    for (int r = 0; r < rows; ++r, out += step) {
        for (int u = 0; u < vecs; ++u, tile += VL) {
            const int64_t left = n - u * VL;
            const vec value = v_load(tile);
            store_upto(out + u * VL, add ? v_add(load_upto(out + u * VL, left), value) : value, left);
        }
    }
}

/* What forward had at a step, where a derivative is taken: each row's y_t, h_{t-1}, c_{t-1} and record. */
typedef struct {
    const real *const *y, *const *h, *const *c, *const *record;
} recorded_rows;

/* Units [unit, unit + n) of `rows` sequences at one step. A record's columns are kept_step apart. */
typedef struct {
    int rows, vecs, stage, keep;
    int streams; /* does what is kept go past the caches? Its vectors are whole lines then */
    int64_t unit, n, kept_step;
    const real *a; /* pre-activations, a_step from row to row and a_column from column to column */
    int64_t a_step, a_column;
    const real *p; /* peepholes, p_step from one to the next */
    int64_t p_step;
    real *const *y; /* each row's output, y_at into it, */
    int64_t y_at;
    const real *const *h, *const *c; /* h_{t-1}, c_{t-1}, */
    real *const *record;             /* and record, or NULL */
    recorded_rows at;                /* where these are tangents */
} forward_point;

typedef struct {
    int rows, vecs, stage;
    int64_t unit, n, H, kept_step;
    const real *p;
    int64_t p_step;
    recorded_rows at;
    const real *const *dy;              /* NULL for zero */
    real *const *delta, *const *direct; /* each row's (columns, H); (p_step) */
    int64_t dh_at;                      /* where dh_t lies beside the deltas, if it is projected */
} reverse_point;

/* Of row r what a cell's derivatives take. */
INLINE void load_recorded(const cell_shape s, const recorded_rows *at, int r, int64_t unit, int64_t n, int64_t step,
                          reverse_values *v) {
    if (s.y_in_reverse) v->y = load_upto(at->y[r] + unit, n);
    if (s.h_in_reverse) v->h = load_upto(at->h[r] + unit, n);
    if (s.c != NONE) v->c = load_upto(at->c[r] + unit, n);
    UNROLL for (int k = 0; k < s.kept; ++k) v->kept[k] = load_upto(at->record[r] + k * step + unit, n);
}

typedef void forward_equations(int variant, int stage, forward_values *v);
typedef void tangent_equations(int variant, int stage, forward_values *v, const reverse_values *at);

/* One stage of the equations, or its tangents, through the derivatives of the equations at what is recorded; `keep` all
 * of the record, or what lasts. */
INLINE void forward_stage_tile(const cell_shape s, const int variant, const int stage, const int keep,
                               forward_equations *equations, tangent_equations *derivatives, const forward_point *p,
                               int rows, int vecs, vec (*passed)[PASSED]) {
    const forward_point own = *p; /* stores of vectors cannot change it, and it stays in registers; */
    if (!s.output) p = &own;      /* with such a stage there are too few of them */
    const int columns = stage == OUTPUT ? 0 : s.second == NONE ? s.columns : stage == 0 ? s.h : s.columns - s.h;
    const unsigned store = s.given[stage] & (keep ? ~0u : s.lasting);
    const unsigned load = stage == 1 ? s.lasting : 0;
    for (int r = 0; r < rows; ++r) {
        for (int u = 0; u < vecs; ++u) {
            const int64_t unit = p->unit + u * VL, n = p->n - u * VL;
            const real *a = p->a + r * p->a_step + u * VL;
            forward_values v;
            UNROLL for (int g = 0; g < columns; ++g) v.a[g] = v_load(a + g * p->a_column);
            if (s.h_in_forward) v.h = load_upto(p->h[r] + unit, n);
            if (s.c != NONE && stage != OUTPUT) v.c = load_upto(p->c[r] + unit, n);
            UNROLL for (int i = 0; i < 3 * s.peephole; ++i) v.p[i] = v_load(p->p + i * p->p_step + unit);
            UNROLL for (int k = 0; k < s.kept; ++k) {
                if (load >> k & 1) v.kept[k] = load_upto(p->record[r] + k * p->kept_step + unit, n);
            }
            if (stage == OUTPUT) {
                UNROLL for (int i = 0; i < PASSED; ++i) v.kept[s.passed[i]] = passed[r * vecs + u][i];
            }
            if (derivatives) {
                reverse_values at;
                load_recorded(s, &p->at, r, unit, n, p->kept_step, &at);
                derivatives(variant, stage, &v, &at);
            } else {
                equations(variant, stage, &v);
            }
            if (keep && p->streams && n >= VL) {
                UNROLL for (int k = 0; k < s.kept; ++k) {
                    real *kept = p->record[r] + k * p->kept_step + unit;
                    if (store >> k & 1) (s.lasting >> k & 1 ? v_store : v_stream)(kept, v.kept[k]);
                }
            } else {
                UNROLL for (int k = 0; k < s.kept; ++k) {
                    if (store >> k & 1) store_upto(p->record[r] + k * p->kept_step + unit, v.kept[k], n);
                }
            }
            if (s.output && stage == 0 && !derivatives) {
                UNROLL for (int i = 0; i < PASSED; ++i) passed[r * vecs + u][i] = v.kept[s.passed[i]];
            } else if (stage > 0 || s.given[1] == 0) {
                store_upto(p->y[r] + p->y_at + unit, v.h, n);
            }
        }
    }
}

/* From pre-activations to the output and the record. A function of a function is a chain for which a processor waits
 * unless others are at hand: so what the output takes is found for all rows first. */
INLINE void forward_rows_tile(const cell_shape s, const int variant, const int stage, const int keep,
                              forward_equations *equations, tangent_equations *derivatives, const forward_point *p,
                              int rows, int vecs) {
    vec passed[TILE_ROWS * TILE_VECS][PASSED]; /* for cells with an output stage, whose rows are those of a tile */
    forward_stage_tile(s, variant, stage, keep, equations, derivatives, p, rows, vecs, passed);
    if (s.output && !derivatives) {
        forward_stage_tile(s, variant, OUTPUT, keep, equations, NULL, p, rows, vecs, passed);
    }
}

INLINE void forward_tile(const cell_shape s, const int variant, const int stage, const int keep,
                         forward_equations *equations, tangent_equations *derivatives, const forward_point *p) {
    if (s.output && p->rows == 1 && p->vecs == 1) { /* what is passed stays in registers */
        forward_rows_tile(s, variant, stage, keep, equations, derivatives, p, 1, 1);
    } else {
        forward_rows_tile(s, variant, stage, keep, equations, derivatives, p, p->rows, p->vecs);
    }
}

/* From a tile of dh_t = delta_{t+1} R (cells without R have none), to which dy_t is added, to delta_t. A gradient that
 * comes past the product to h itself (there is no c) is part of dh_t; it is added first, so that dh_t is the same
 * however the steps are cut into windows. */
INLINE void reverse_tile(const cell_shape s, const int variant, const int stage,
                         void equations(int variant, int stage, reverse_values *v), const real *tile,
                         const reverse_point *p) {
    const unsigned store = s.given[1] == 0 ? ~0u : s.deltas[stage];
    const int vecs = p->vecs;
    const int64_t H = p->H, kept_step = p->kept_step, p_step = p->p_step, units = p->n;
    const real *peepholes = s.peephole ? p->p + p->unit : NULL;
    for (int r = 0; r < p->rows; ++r) {
        const real *dy = stage == 0 && p->dy ? p->dy[r] + p->unit : NULL;
        real *delta = p->delta[r] + p->unit, *direct = s.direct ? p->direct[r] + p->unit : NULL;
        for (int u = 0; u < vecs; ++u) {
            const int64_t at = u * VL, n = units - at;
            reverse_values v;
            v.dh = s.h > 0 || stage > 0 ? v_load(tile + (r * vecs + u) * VL) : v_set1(0);
            if (s.direct) v.direct = v_load(direct + at);
            if (stage == 0 && s.direct && s.c == NONE) v.dh = v_add(v.dh, v.direct);
            if (dy) v.dh = v_add(v.dh, load_upto(dy + at, n));
            load_recorded(s, &p->at, r, p->unit + at, n, kept_step, &v);
            UNROLL for (int i = 0; i < 3 * s.peephole; ++i) v.p[i] = v_load(peepholes + i * p_step + at);
            equations(variant, stage, &v);
            UNROLL for (int g = 0; g < s.columns; ++g) {
                if (store >> g & 1) store_upto(delta + g * H + at, v.delta[g], n);
            }
            if (s.direct) v_store(direct + at, v.direct);
        }
    }
}

/* A projected output: h_t = P m_t with m_t the cell's own output, and in reverse dJ/dh_t, put by for P. */
static void project_forward(const forward_point *p) {
    for (int r = 0; r < p->rows; ++r) {
        put_tile(p->a + r * p->a_step, 1, p->vecs, p->y[r] + p->unit, 0, p->n, 0);
    }
}

static void project_backward(const real *tile, const reverse_point *p) {
    for (int r = 0; r < p->rows; ++r) {
        for (int u = 0; u < p->vecs; ++u, tile += VL) {
            const int64_t unit = p->unit + u * VL, n = p->n - u * VL;
            const vec dh = v_load(tile);
            store_upto(p->delta[r] + p->dh_at + unit, p->dy ? v_add(dh, load_upto(p->dy[r] + unit, n)) : dh, n);
        }
    }
}

/* The tile of a cell: a stage that the cell does not have, and a record that it need not tell apart, cost no code. */
INLINE void forward_cell(const cell_shape s, const int variant, forward_equations *equations, const forward_point *p) {
    const unsigned optional = (s.given[0] | s.given[1] | s.given[OUTPUT]) & ~s.lasting;
    if (s.given[1] && p->stage == 1) {
        if (p->keep) {
            forward_tile(s, variant, 1, 1, equations, NULL, p);
        } else {
            forward_tile(s, variant, 1, 0, equations, NULL, p);
        }
    } else if (optional && p->keep) {
        forward_tile(s, variant, 0, 1, equations, NULL, p);
    } else {
        forward_tile(s, variant, 0, 0, equations, NULL, p);
    }
}

INLINE void tangent_cell(const cell_shape s, const int variant, tangent_equations *derivatives,
                         const forward_point *p) {
    if (s.given[1] && p->stage == 1) {
        forward_tile(s, variant, 1, 0, NULL, derivatives, p);
    } else {
        forward_tile(s, variant, 0, 0, NULL, derivatives, p);
    }
}

INLINE void reverse_cell(const cell_shape s, const int variant,
                         void equations(int variant, int stage, reverse_values *v), const real *tile,
                         const reverse_point *p) {
    if (s.given[1] && p->stage == 1) {
        reverse_tile(s, variant, 1, equations, tile, p);
    } else {
        reverse_tile(s, variant, 0, equations, tile, p);
    }
}

#define CELL(name, equations, variant)                                                                                 \
    static void forward_##name(const forward_point *p) {                                                               \
        forward_cell(equations##_shape(variant), variant, equations##_forward, p);                                     \
    }                                                                                                                  \
    static void tangent_##name(const forward_point *p) {                                                               \
        tangent_cell(equations##_shape(variant), variant, equations##_tangent, p);                                     \
    }                                                                                                                  \
    static void backward_##name(const real *tile, const reverse_point *p) {                                            \
        reverse_cell(equations##_shape(variant), variant, equations##_backward, tile, p);                              \
    }
#include "../cells/cells.def"
#undef CELL

typedef struct {
    cell_shape shape;
    void (*forward)(const forward_point *p), (*tangent)(const forward_point *p);
    void (*backward)(const real *tile, const reverse_point *p);
} cell_kernels;

static cell_kernels cell_of(int cell) {
    enum {
#define CELL(name, equations, variant) name,
#include "../cells/cells.def"
#undef CELL
    };
    switch (cell) {
    default:
#define CELL(name, equations, variant)                                                                                 \
    case name: return (cell_kernels){equations##_shape(variant), forward_##name, tangent_##name, backward_##name};
#include "../cells/cells.def"
#undef CELL
    }
}

static frnn_shape shape_of(const frnn_layer *layer) {
    const cell_shape s = cell_of(layer->cell).shape;
    return (frnn_shape){.gates = s.gates,
                        .kept = s.kept + (layer->output_size < layer->hidden_size),
                        .kept_step = column_step(layer->hidden_size),
                        .R = s.h > 0,
                        .h = s.h > 0 || s.h_in_forward,
                        .c = s.c != NONE,
                        .peephole = s.peephole};
}
