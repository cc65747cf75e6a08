/* The parts alone, for tests: the functions, the product; and the loops that find the limits of the machine. */

static void evaluate(frnn_function function, int64_t n, const void *in, void *out) {
    for (int64_t i = 0; i < n; i += VL) {
        const vec x = load_upto((const real *)in + i, n - i);
        const vec y = function == FRNN_EXP ? v_exp(x) : function == FRNN_TANH ? v_tanh(x) : v_logistic(x);
        store_upto((real *)out + i, y, n - i);
    }
}

static size_t product_size(int64_t K, int64_t N) {
    const packing p = packing_of(N, 1, 1, K);
    return packed_size(&p) * sizeof(real);
}

static void product(int64_t M, int64_t K, int64_t N, const void *a, const void *b, void *c, void *workspace) {
    const packing p = packing_of(N, 1, 1, K);
    real *packed = workspace;
    for (int64_t j = 0; j < p.panels; ++j) pack_panel(&p, b, N, K, j, packed + packed_panel(&p, j), 0);
    const split tiles = tiles_of(&p, M);
    for (int64_t i = 0; i < tiles.parts; ++i) {
        const int64_t m = split_at(&tiles, i);
        const int height = (int)(split_at(&tiles, i + 1) - m);
        const real *rows[TILE_ROWS];
        for (int r = 0; r < height; ++r) rows[r] = (const real *)a + (m + r) * K;
        for (int64_t j = 0; j < p.panels; ++j) {
            _Alignas(64) real tile[TILE_ROWS * TILE_VECS * VL];
            const int vecs = panel_vectors(&p, j);
            const int64_t column = first_vector(&p, j) * VL;
            tile_product(height, vecs, K, p.slice, rows, 1, packed + packed_panel(&p, j), zeros, 0, tile, vecs * VL,
                         NULL);
            put_tile(tile, height, vecs, (real *)c + m * N + column, N, N - column, 0);
        }
    }
}

/* Twelve independent chains hide the latency of a multiply-add (4 cycles, up to two units). */
static int64_t fma_loop(int64_t rounds) {
    enum { CHAINS = 12 };
    vec sum[CHAINS];
    const vec a = v_set1((real)0.5);
    for (int i = 0; i < CHAINS; ++i) sum[i] = v_set1((real)i);
    for (int64_t n = 0; n < rounds; ++n) {
        for (int i = 0; i < CHAINS; ++i) sum[i] = v_fma(sum[i], a, a);
    }
    volatile real result[CHAINS];
    for (int i = 0; i < CHAINS; ++i) {
        real lanes_of_sum[VL];
        v_store(lanes_of_sum, sum[i]);
        result[i] = lanes_of_sum[0];
    }
    (void)result;
    return rounds * CHAINS * VL * 2;
}

static int64_t read_loop(const void *data, int64_t bytes, int64_t rounds) {
    enum { STREAMS = 8 };
    vec sum[STREAMS];
    for (int i = 0; i < STREAMS; ++i) sum[i] = v_set1(0);
    const int64_t count = bytes / (int64_t)sizeof(real);
    for (int64_t n = 0; n < rounds; ++n) {
        for (int64_t k = 0; k < count; k += STREAMS * VL) {
            for (int i = 0; i < STREAMS; ++i) sum[i] = v_add(sum[i], v_load((const real *)data + k + i * VL));
        }
    }
    for (int i = 1; i < STREAMS; ++i) sum[0] = v_add(sum[0], sum[i]);
    real lanes_of_sum[VL];
    v_store(lanes_of_sum, sum[0]);
    volatile real result = lanes_of_sum[0];
    (void)result;
    return rounds * count * (int64_t)sizeof(real);
}
