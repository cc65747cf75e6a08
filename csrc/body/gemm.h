/* The product: packed panels and the micro-kernel that everything runs on.
 *
 * A matrix of N columns (hidden units with all their gates, or plain columns) and K rows is packed into panels: a panel
 * holds up to TILE_VECS vectors of columns side by side, for every k in turn, so the micro-kernel reads it as one
 * stream. A tile is up to TILE_ROWS rows by one panel; its sums stay in registers for the whole of k.
 *
 * Every element is a chain of fused multiply-adds in the order of k for each slice of k, added to its initial value one
 * after the other, whatever the tile: this is why results do not depend on the batch, the threads or the width of a
 * vector. (An instruction set without fused ones rounds twice, and has bits of its own.) */

INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
/* `total` things shared out to `parts` as evenly as whole numbers allow, the larger parts first. */
typedef struct {
    int64_t parts, each, larger;
} split;
INLINE split split_of(int64_t total, int64_t parts) {
    return (split){parts, parts > 0 ? total / parts : 0, parts > 0 ? total % parts : 0};
}
/* Where part i begins, and so where part i - 1 ends. */
INLINE int64_t split_at(const split *s, int64_t i) { return i * s->each + least(i, s->larger); }
INLINE int64_t part(int64_t i, int64_t parts, int64_t total) {
    const split s = split_of(total, parts);
    return split_at(&s, i);
}

enum { LINE_BYTES = 64, LINE = LINE_BYTES / (int)sizeof(real) }; /* of a cache, and the reals in it */

/* From row to row of n reals: an odd number of cache lines, so that those of a column do not fall into few sets of a
 * cache. */
INLINE int64_t row_step(int64_t n) { return (divide_up(n, LINE) | 1) * LINE; }

/* From one column of a step's record to the next: H, and from a cache line on whole lines. */
INLINE int64_t column_step(int64_t H) { return H < LINE ? H : divide_up(H, LINE) * LINE; }

/* What rounding leaves of a sum grows with the root of its length: k is taken in equal slices of at most so many. */
enum { SLICE = 256 };
INLINE int64_t slice_of(int64_t K, int64_t longest) { return divide_up(K, most(1, divide_up(K, longest))); }

/* Bytes of packed weights that are far at least, and of each panel at most; and of a panel that the second-level cache
 * keeps while many tiles read it. */
enum { FAR_WEIGHTS = 4 << 20, FAR_PANEL = 1 << 18, KEPT_PANEL = 1 << 19 };

/* How N units of some columns each lie in panels: panel j holds the vectors of units [first_vector(j), first_vector(j +
 * 1)), column by column. Of the columns, `gates` have weights, for each k in turn. */
typedef struct {
    int64_t units, K, slice;
    int64_t vectors, panels; /* vectors of units, and panels they are shared out to */
    split shares;
    int columns, gates;
    int rows; /* of a tile, at most */
    int far;  /* too large for the second-level cache, which holds two panels though */
} packing;

INLINE int64_t first_vector(const packing *p, int64_t panel) { return split_at(&p->shares, panel); }
INLINE int panel_vectors(const packing *p, int64_t panel) {
    return (int)(first_vector(p, panel + 1) - first_vector(p, panel));
}
INLINE int64_t panel_units(const packing *p, int64_t panel) {
    return least(panel_vectors(p, panel) * VL, p->units - first_vector(p, panel) * VL);
}
/* A panel's columns stand without gaps, column g from g * panel_units on, for the last units seldom fill their vectors:
 * `columns` of them take so many. */
INLINE int column_vectors(const packing *p, int64_t panel, int columns) {
    return (int)divide_up(columns * panel_units(p, panel), VL);
}
/* A row of what the panels' products are added to: all their columns together. The last panel's columns may begin
 * anywhere in a vector, and whole vectors are read and written from there on, so the last one can reach one vector
 * further: there is room for it. What lies past the columns is read but never stored in a result. */
INLINE int64_t packed_column(const packing *p, int64_t panel) { return first_vector(p, panel) * p->columns * VL; }
INLINE int64_t packed_width(const packing *p) {
    const int64_t last = p->panels - 1, room = p->columns > 1 && p->units % VL > 0;
    return last < 0 ? 0 : packed_column(p, last) + (column_vectors(p, last, p->columns) + room) * VL;
}
/* The packed weights, and where a panel's begin. */
INLINE int64_t packed_panel(const packing *p, int64_t panel) { return first_vector(p, panel) * p->gates * VL * p->K; }
INLINE int64_t panel_size(const packing *p, int64_t panel) { return column_vectors(p, panel, p->gates) * VL * p->K; }
INLINE size_t packed_size(const packing *p) {
    const int64_t last = p->panels - 1;
    return last < 0 ? 0 : (size_t)(packed_panel(p, last) + panel_size(p, last));
}

/* In panels of at most `width` vectors. */
INLINE packing packing_in(int64_t units, int columns, int gates, int64_t K, int width) {
    packing p = {.units = units, .K = K, .slice = slice_of(K, SLICE), .columns = columns, .gates = gates};
    p.vectors = divide_up(units, VL);
    p.panels = divide_up(p.vectors, most(1, width / columns));
    p.shares = split_of(p.vectors, p.panels);
    const int64_t widest = gates * (p.shares.each + (p.shares.larger > 0));
    p.rows = (int)least(TILE_ROWS, TILE_SUMS / most(1, widest));
    p.far = packed_size(&p) * sizeof(real) >= FAR_WEIGHTS && (size_t)(widest * VL * K) * sizeof(real) <= FAR_PANEL;
    return p;
}

INLINE packing packing_of(int64_t units, int columns, int gates, int64_t K) {
    return packing_in(units, columns, gates, K, TILE_VECS);
}

/* For a product of a chunk's rows, many tiles for each panel. (With the few rows of a step the narrower panels of long
 * columns gain nothing, and with one they lose.) */
INLINE packing chunk_packing_of(int64_t units, int64_t K) {
    const int narrow = TILE_VECS * VL * K * (int64_t)sizeof(real) > KEPT_PANEL;
    return packing_in(units, 1, 1, K, narrow ? TILE_VECS / 2 : TILE_VECS);
}

INLINE vec load_upto(const real *p, int64_t n) { return n >= VL ? v_load(p) : v_load_n(p, n); }
INLINE void store_upto(real *p, vec a, int64_t n) {
    if (n >= VL) {
        v_store(p, a);
    } else {
        v_store_n(p, a, n);
    }
}

/* The panels [from, to) are taken from first to last at one step and from last to first at the next, so that those last
 * read are read again while they are still in cache: of weights too large for one, a cache's worth stays. */
INLINE int64_t to_and_fro(int64_t n, int64_t from, int64_t to, int64_t step) {
    return step % 2 == 0 ? n : from + to - 1 - n;
}

/* Asks for n reals that will soon be read or written, out of the hardware's sight since they lie in rows far apart.
 * They come to the second-level cache: the first one is full of the panel that streams through it. */
INLINE void fetch_ahead(const real *p, int64_t n) {
    for (int64_t i = 0; i < n; i += LINE) __builtin_prefetch(p + i, 0, 2);
}
enum { ROWS_AHEAD = 8 }; /* so many rows ahead, where each is but little work */

/* Lines for a product to ask for, one for each k: a processor has few places for lines on their way, and of many that
 * are asked for at once some come late or never. Where few rows want them, or the product has others to ask for, they
 * are asked for at once all the same. There may be ten runs of them for each row of a tile, and one besides. */
enum { MOST_RUNS = 10 * TILE_ROWS + 1 };
typedef struct {
    const real *from, *to;
} line_run;
typedef struct {
    int at_once, count;
    line_run run[MOST_RUNS + 1]; /* the last one is empty */
} lines_ahead;

INLINE void ask_ahead(lines_ahead *lines, const real *p, int64_t n) {
    if (lines->at_once) {
        fetch_ahead(p, n);
    } else {
        lines->run[lines->count++] = (line_run){p, p + n};
    }
}

/* From so many bytes on, copies for the tape and its record are written past the caches, and far weights too, for to
 * fetch lines that are then overwritten is half of what it costs; the copy of x and the record, which backward reads,
 * only if caches could not hold them until then. Such writes may come late: a fence ends a worker's part of a call. */
enum { STREAMED_X = 1 << 21, STREAMED_Y = 1 << 20, STREAMED_RECORD = 3 << 24 };

static const _Alignas(64) real zeros[TILE_VECS * VL];

/* A panel that is not packed yet: where row k of its columns lies, how many of those are left for its last vector (or
 * beyond), and where it is packed to on the way. */
typedef struct {
    const real *const *row;
    int64_t column, last;
    real *packed;
} unpacked_panel;

/* The micro-kernel: out[r][n] = init[r][n] + sum over k of row[r][k * stride] * panel[k][n], for `rows` rows and `vecs`
 * vectors. init_step and out_step are the distances from one row to the next; an init_step of 0 adds the same to all.
 * The sum begins at zero, so that it is rounded to its own size and not to that of init; if it is taken in slices, each
 * begins anew and is added, in registers where a tile is so small that they hold the sum of all beside that of one. In
 * one slice rows are written in order, and a row of out may be init of a later one; a `bias`, one row for all or NULL,
 * is then added to the sum before init is. If it `fetches`, it asks for a line for each k, as long as there are lines
 * ahead; if it `packs`, it takes the panel from its rows. (What the loop over k takes comes first: the other arguments
 * are in memory.) */
INLINE void tile_body(const int rows, const int vecs, const int fetches, const int slices, const int packs, int64_t K,
                      int64_t slice, const real *const *row, int64_t stride, const real *panel, const line_run *ahead,
                      const unpacked_panel *source, const real *bias, const real *init, int64_t init_step, real *out,
                      int64_t out_step) {
    const int small = slices && rows * vecs <= TILE_SUMS / 2;
    const unpacked_panel own = packs ? *source : (unpacked_panel){NULL, 0, 0, NULL};
    vec sum[TILE_ROWS][TILE_VECS], total[TILE_ROWS][TILE_VECS];
    const real *a[TILE_ROWS], *line = fetches ? ahead->from : NULL;
    real *packed = own.packed;
    UNROLL for (int r = 0; r < rows; ++r) {
        a[r] = row[r];
        UNROLL for (int n = 0; n < vecs && small; ++n) total[r][n] = v_load(init + r * init_step + n * VL);
    }
    int64_t k = 0;
    do {
        const int64_t end = slices ? least(K, k + slice) : K;
        UNROLL for (int r = 0; r < rows; ++r) { UNROLL for (int n = 0; n < vecs; ++n) sum[r][n] = v_set1(0); }
        UNROLL for (int asks = fetches; asks >= 0; --asks) { /* a loop with lines ahead, one without */
            for (; k < end && (!asks || line); ++k, panel += vecs * VL) {
                if (asks) {
                    fetch_ahead(line, LINE);
                    line += LINE;
                    if (line >= ahead->to) line = (++ahead)->from;
                }
                vec w[TILE_VECS];
                if (packs) {
                    const real *in = own.row[k] + own.column;
                    if (k + ROWS_AHEAD < K) fetch_ahead(own.row[k + ROWS_AHEAD] + own.column, vecs * VL);
                    UNROLL for (int n = 0; n < vecs; ++n, packed += VL) {
                        w[n] = n + 1 < vecs ? v_load(in + n * VL) : load_upto(in + n * VL, own.last);
                        v_store(packed, w[n]);
                    }
                } else {
                    UNROLL for (int n = 0; n < vecs; ++n) w[n] = v_load(panel + n * VL);
                }
                UNROLL for (int r = 0; r < rows; ++r) {
                    const vec x = v_set1(a[r][k * stride]);
                    UNROLL for (int n = 0; n < vecs; ++n) sum[r][n] = v_fma(x, w[n], sum[r][n]);
                }
            }
        }
        if (bias) {
            vec b[TILE_VECS];
            UNROLL for (int n = 0; n < vecs; ++n) b[n] = v_load(bias + n * VL);
            UNROLL for (int r = 0; r < rows; ++r) {
                UNROLL for (int n = 0; n < vecs; ++n) sum[r][n] = v_add(b[n], sum[r][n]);
            }
        }
        UNROLL for (int r = 0; r < rows; ++r) {
            UNROLL for (int n = 0; n < vecs; ++n) {
                if (small) {
                    total[r][n] = v_add(total[r][n], sum[r][n]);
                } else {
                    v_store(out + r * out_step + n * VL, v_add(v_load(init + r * init_step + n * VL), sum[r][n]));
                }
            }
        }
        init = out;
        init_step = out_step;
    } while (slices && k < K);
    UNROLL for (int r = 0; r < rows && small; ++r) {
        UNROLL for (int n = 0; n < vecs; ++n) v_store(out + r * out_step + n * VL, total[r][n]);
    }
}

typedef void tile_kernel(int64_t K, int64_t slice, const real *const *row, int64_t stride, const real *panel,
                         const line_run *ahead, const real *init, int64_t init_step, real *out, int64_t out_step);
typedef void packing_kernel(int64_t K, const real *const *row, int64_t stride, const unpacked_panel *source,
                            const real *init, int64_t init_step, real *out, int64_t out_step);
typedef void biased_kernel(int64_t K, const real *const *row, const real *panel, const real *bias, const real *init,
                           int64_t init_step, real *out, int64_t out_step);

#define TILE_KERNEL(name, fetches, slices, rows, vecs)                                                                 \
    static void name##rows##x##vecs(int64_t K, int64_t slice, const real *const *row, int64_t stride,                  \
                                    const real *panel, const line_run *ahead, const real *init, int64_t init_step,     \
                                    real *out, int64_t out_step) {                                                     \
        tile_body(rows, vecs, fetches, slices, 0, K, slice, row, fetches ? 1 : stride, panel, ahead, NULL, NULL, init, \
                  init_step, out, out_step);                                                                           \
    }
#define PACKING_KERNEL(rows, vecs)                                                                                     \
    static void packing_##rows##x##vecs(int64_t K, const real *const *row, int64_t stride,                             \
                                        const unpacked_panel *source, const real *init, int64_t init_step, real *out,  \
                                        int64_t out_step) {                                                            \
        tile_body(rows, vecs, 0, 0, 1, K, K, row, stride, source->packed, NULL, source, NULL, init, init_step, out,    \
                  out_step);                                                                                           \
    }
#define BIASED_KERNEL(rows, vecs)                                                                                      \
    static void biased_##rows##x##vecs(int64_t K, const real *const *row, const real *panel, const real *bias,         \
                                       const real *init, int64_t init_step, real *out, int64_t out_step) {             \
        tile_body(rows, vecs, 0, 0, 0, K, K, row, 1, panel, NULL, NULL, bias, init, init_step, out, out_step);         \
    }
#define TILE_ROW(rows, vecs)                                                                                           \
    TILE_KERNEL(tile_, 0, 0, rows, vecs)                                                                               \
    TILE_KERNEL(slices_, 0, 1, rows, vecs)                                                                             \
    TILE_KERNEL(fetching_slices_, 1, 1, rows, vecs) PACKING_KERNEL(rows, vecs) BIASED_KERNEL(rows, vecs)
#define TILE_KERNELS(rows) TILE_ROW(rows, 1) TILE_ROW(rows, 2) TILE_ROW(rows, 3) TILE_ROW(rows, 4)
TILE_KERNELS(1)
TILE_KERNELS(2)
TILE_KERNELS(3)
TILE_KERNELS(4)
TILE_KERNELS(5)
TILE_KERNELS(6)
TILE_KERNELS(7)
TILE_KERNELS(8)

#define TILE_ENTRY(name, rows, vecs) (rows) * (vecs) <= TILE_SUMS ? name##rows##x##vecs : NULL
#define TILE_ENTRIES(name, rows)                                                                                       \
    {TILE_ENTRY(name, rows, 1), TILE_ENTRY(name, rows, 2), TILE_ENTRY(name, rows, 3), TILE_ENTRY(name, rows, 4)}
#define TILE_TABLE(name)                                                                                               \
    {TILE_ENTRIES(name, 1), TILE_ENTRIES(name, 2), TILE_ENTRIES(name, 3), TILE_ENTRIES(name, 4),                       \
     TILE_ENTRIES(name, 5), TILE_ENTRIES(name, 6), TILE_ENTRIES(name, 7), TILE_ENTRIES(name, 8)}
static tile_kernel *const tile_kernels[][TILE_ROWS][TILE_VECS] = {TILE_TABLE(tile_), TILE_TABLE(slices_),
                                                                  TILE_TABLE(fetching_slices_)};
static packing_kernel *const packing_kernels[TILE_ROWS][TILE_VECS] = TILE_TABLE(packing_);
static biased_kernel *const biased_kernels[TILE_ROWS][TILE_VECS] = TILE_TABLE(biased_);

/* A tile of a product, in one slice or slice by slice. It asks for the lines ahead, if there are any (`ahead` may be
 * NULL); the rows' elements are then to lie side by side, `stride` 1. */
INLINE void tile_product(int rows, int vecs, int64_t K, int64_t slice, const real *const *row, int64_t stride,
                         const real *panel, const real *init, int64_t init_step, real *out, int64_t out_step,
                         lines_ahead *ahead) {
    const int fetches = ahead && ahead->count > 0, kind = fetches ? 2 : K > slice;
    if (fetches) ahead->run[ahead->count] = (line_run){NULL, NULL};
    tile_kernels[kind][rows - 1][vecs - 1](K, slice, row, stride, panel, fetches ? ahead->run : NULL, init, init_step,
                                           out, out_step);
}

/* Are n rows, one or more, one step apart? */
INLINE int evenly(const real *const *rows, int64_t n, int64_t *step) {
    int64_t even = 1;
    *step = n > 1 ? rows[1] - rows[0] : 0;
    while (even < n && rows[even] - rows[even - 1] == *step) ++even;
    return even == n;
}

/* Far weights come through the second-level cache panel by panel, and the first tile of a panel would wait for them:
 * each tile of the one before, the n-th of those taken to and fro, asks for some of its lines, one for each k, until
 * all are on their way. */
INLINE void ask_next_lines(const packing *p, const real *packed, int64_t n, int64_t from, int64_t to, int64_t step,
                           int64_t tile, lines_ahead *ahead) {
    if (n + 1 == to) return;
    const int64_t j = to_and_fro(n + 1, from, to, step), at = tile * p->K * LINE;
    if (at >= panel_size(p, j)) return;
    ahead->at_once = 0;
    ask_ahead(ahead, packed + packed_panel(p, j) + at, p->K * LINE);
}

/* `count` rows are covered by tiles of nearly equal height. */
INLINE split tiles_of(const packing *p, int64_t count) {
    return count <= p->rows ? (split){count > 0, count, 0} : split_of(count, divide_up(count, p->rows));
}
