/* Weights into panels, for one kind of call. */

/* VL vectors of VL lanes, rows into columns: zipping row i with row i + VL/2 rotates the bits of (row, lane) by one, so
 * log2(VL) rounds exchange the two. */
INLINE void transpose(vec *row) {
    for (int round = 1; round < VL; round *= 2) {
        vec next[VL];
        for (int i = 0; i < VL / 2; ++i) {
            next[2 * i] = v_zip_lo(row[i], row[i + VL / 2]);
            next[2 * i + 1] = v_zip_hi(row[i], row[i + VL / 2]);
        }
        for (int i = 0; i < VL; ++i) row[i] = next[i];
    }
}

INLINE int streams(const packing *p, const real *packed) {
    return packed_size(p) * sizeof(real) >= FAR_WEIGHTS && p->units % VL == 0 && (uintptr_t)packed % LINE_BYTES == 0;
}
INLINE void store_packed(real *p, vec a, int64_t n, const int stream) {
    if (stream) {
        v_stream(p, a);
    } else {
        store_upto(p, a, n);
    }
}

/* Packs one panel of a weight matrix, rows of K, `step` from one to the next: unit j of gate g is row block[g] * units
 * + j. Returned is, if it is wanted, zero times the panel's weights: NaN if any of them is not finite. */
INLINE vec pack_weights_panel(const packing *p, const real *w, int64_t step, const int *block, int64_t panel,
                              real *packed, const int wanted) {
    const int stream = sizeof(vec) == LINE_BYTES && streams(p, packed); /* vector by vector: of whole lines alone */
    real *out = packed + packed_panel(p, panel);
    const int vectors = panel_vectors(p, panel), width = column_vectors(p, panel, p->gates) * VL;
    const int64_t units = panel_units(p, panel);
    vec zero = v_set1(0);
    if (width > p->gates * units) memset(out, 0, (size_t)(width * p->K) * sizeof(real));
    for (int g = 0; g < p->gates; ++g) {
        for (int u = 0; u < vectors; ++u) {
            const int64_t unit = (first_vector(p, panel) + u) * VL, column = g * units + u * VL;
            const int64_t rows = least(VL, p->units - unit);
            const real *row = w + (block[g] * p->units + unit) * step;
            const real *next = unit + 2 * VL <= p->units ? row + VL * step : NULL;
            for (int64_t k = 0; k < p->K; k += VL) {
                const int64_t n = least(VL, p->K - k);
                vec square[VL];
                if (next) fetch_ahead(next + k * VL, n * VL);
                for (int i = 0; i < VL; ++i) square[i] = i < rows ? v_load_n(row + i * step + k, n) : v_set1(0);
                for (int i = 0; wanted && i < VL; ++i) zero = v_fma(square[i], v_set1(0), zero);
                transpose(square);
                for (int i = 0; i < n; ++i) {
                    store_packed(out + (k + i) * width + column, square[i], width - column, stream);
                }
            }
        }
    }
    return zero;
}

/* Packs the panels that fall to this worker; zero times each goes to a vector of `zero_times`, if that is not NULL. */
static void pack_weights(frnn_job *job, const frnn_worker *w, const packing *p, const real *matrix, int64_t step,
                         const int *block, real *packed, real *zero_times) {
    const int64_t end = part(w->id + 1, w->size, p->panels);
    for (int64_t panel = part(w->id, w->size, p->panels); panel < end; ++panel) {
        if (poll(job, w, (double)PACK_MACS * (double)(p->K * TILE_VECS * VL))) return;
        if (zero_times) {
            v_store(zero_times + panel * VL, pack_weights_panel(p, matrix, step, block, panel, packed, 1));
        } else {
            pack_weights_panel(p, matrix, step, block, panel, packed, 0);
        }
    }
}

INLINE void pack_rows(const packing *p, const real *matrix, int64_t step, int64_t K, int64_t panel, real *packed,
                      const int stream) {
    const int vectors = panel_vectors(p, panel);
    const int64_t column = first_vector(p, panel) * VL, columns = least(vectors * VL, p->units - column);
    const int whole = (int)(columns / VL);
    for (int64_t k = 0; k < K; ++k, packed += vectors * VL) {
        const real *row = matrix + k * step + column;
        for (int u = 0; u < whole; ++u) store_packed(packed + u * VL, v_load(row + u * VL), VL, stream);
        if (whole < vectors) v_store(packed + whole * VL, v_load_n(row + whole * VL, columns - whole * VL));
    }
}

/* Packs one panel of a matrix of K rows, `step` apart, and p->units columns. */
static void pack_panel(const packing *p, const real *matrix, int64_t step, int64_t K, int64_t panel, real *packed,
                       int stream) {
    if (stream) {
        pack_rows(p, matrix, step, K, panel, packed, 1);
    } else {
        pack_rows(p, matrix, step, K, panel, packed, 0);
    }
}

/* Packs the panels that fall to this worker of a matrix whose rows, `step` apart, are blocks of `height`, taken
 * in the order of block. */
static void pack_blocks(frnn_job *job, const frnn_worker *w, const packing *p, const real *matrix, int64_t step,
                        const int *block, int64_t height, real *packed) {
    for (int64_t j = part(w->id, w->size, p->panels); j < part(w->id + 1, w->size, p->panels); ++j) {
        const int64_t vectors = panel_vectors(p, j);
        real *out = packed + packed_panel(p, j);
        for (int64_t g = 0; g * height < p->K; ++g, out += height * vectors * VL) {
            if (poll(job, w, (double)PACK_MACS * (double)(height * vectors * VL))) return;
            pack_panel(p, matrix + block[g] * height * step, step, height, j, out, streams(p, packed));
        }
    }
}

/* Peepholes (3, H) into packed weights, `step` apart and zero from H on. */
static void pack_peepholes(const real *p, int64_t H, int64_t step, real *packed) {
    for (int64_t i = 0; i < 3; ++i, packed += step) {
        memset(packed, 0, (size_t)step * sizeof(real));
        memcpy(packed, p + i * H, (size_t)H * sizeof(real));
    }
}
