/* What follows the product: a cell's equations on every vector of a tile. The tile holds, row by row, the gates of
 * `vecs` vectors of hidden units. */

#include "../cells/elman.h"

INLINE vec load_upto(const real *p, int64_t n) { return n >= VL ? v_load(p) : v_load_n(p, n); }
INLINE void store_upto(real *p, vec a, int64_t n) {
    if (n >= VL) {
        v_store(p, a);
    } else {
        v_store_n(p, a, n);
    }
}

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

/* Units [unit, unit + n) of `rows` sequences at one step. */
typedef struct {
    int rows, vecs;
    int64_t unit, n;
    real *const *h; /* each row's h_t */
} forward_point;

typedef struct {
    int rows, vecs;
    int64_t unit, n;
    const real *const *h;  /* each row's h_t */
    const real *const *dy; /* each row's dJ/dy_t, or NULL */
    real *const *delta;    /* each row's (G, H) */
} reverse_point;

/* h_t from a tile of pre-activations a_t */
INLINE void elman_forward_tile(const int f, const real *tile, const forward_point *p) {
    for (int r = 0; r < p->rows; ++r) {
        real *h = p->h[r] + p->unit;
        for (int u = 0; u < p->vecs; ++u, tile += VL) {
            store_upto(h + u * VL, elman_forward(f, v_load(tile)), p->n - u * VL);
        }
    }
}

/* delta_t from a tile of dh_t = delta_{t+1} R, to which dy_t is added */
INLINE void elman_backward_tile(const int f, const real *tile, const reverse_point *p) {
    for (int r = 0; r < p->rows; ++r) {
        const real *h = p->h[r] + p->unit, *dy = p->dy ? p->dy[r] + p->unit : NULL;
        real *delta = p->delta[r] + p->unit;
        for (int u = 0; u < p->vecs; ++u, tile += VL) {
            const int64_t n = p->n - u * VL;
            vec dh = v_load(tile);
            if (dy) dh = v_add(dh, load_upto(dy + u * VL, n));
            store_upto(delta + u * VL, elman_backward(f, load_upto(h + u * VL, n), dh), n);
        }
    }
}

#define CELL(name, equations, variant, gates)                                                                          \
    static void name##_forward(const real *tile, const forward_point *p) {                                             \
        equations##_forward_tile(variant, tile, p);                                                                    \
    }                                                                                                                  \
    static void name##_backward(const real *tile, const reverse_point *p) {                                            \
        equations##_backward_tile(variant, tile, p);                                                                   \
    }
#include "../cells/cells.def"
#undef CELL

typedef struct {
    int gates;
    void (*forward)(const real *tile, const forward_point *p);
    void (*backward)(const real *tile, const reverse_point *p);
} cell_kernels;

static const cell_kernels cells[] = {
#define CELL(name, equations, variant, gates) {gates, name##_forward, name##_backward},
#include "../cells/cells.def"
#undef CELL
};
