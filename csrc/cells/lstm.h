/* Long short-term memory (Hochreiter & Schmidhuber, Neural Computation 9, 1997; forget gate: Gers, Schmidhuber &
 * Cummins, Neural Computation 12, 2000; peepholes: Gers & Schmidhuber, IJCNN 2000):
 *
 *     a_k = W_k x_t + b_k + R_k h_{t-1}        for each gate k, with peepholes
 *           + p_i c_{t-1} (i), + p_f c_{t-1} (f), + p_o c_t (o)
 *     i = logistic(a_i)    f = logistic(a_f)    g = tanh(a_g)    o = logistic(a_o)
 *     c_t = f c_{t-1} + i g                    h_t = o tanh(c_t)
 *
 * Without a forget gate (the original) f = 1; coupled (Greff et al., IEEE Trans. NNLS 28, 2017) f = 1 - i: then the
 * gates are i, g, o. Kept of every step are the gates, then c_t. */

enum { LSTM_ORIGINAL = 1, LSTM_COUPLED = 2, LSTM_PEEPHOLE = 4 };

/* Where g, o and c_t stand; i is 0 and f, if there is one, 1. */
INLINE int lstm_g(const int variant) { return variant & (LSTM_ORIGINAL | LSTM_COUPLED) ? 1 : 2; }
INLINE int lstm_o(const int variant) { return lstm_g(variant) + 1; }
INLINE int lstm_c(const int variant) { return lstm_g(variant) + 2; }

INLINE cell_shape lstm_shape(const int variant) {
    const int gates = lstm_c(variant);
    return (cell_shape){.gates = gates,
                        .columns = gates,
                        .block = {0, 1, 2, 3},
                        .x = gates,
                        .h = gates,
                        .direct = 1,
                        .kept = gates + 1,
                        .given = {(2u << gates) - 1},
                        .lasting = 1u << gates,
                        .output = 1,
                        .passed = {lstm_o(variant), lstm_c(variant)},
                        .c = lstm_c(variant),
                        .second = NONE,
                        .peephole = (variant & LSTM_PEEPHOLE) != 0,
                        .peephole_of = {0, gates == 4 ? 1 : NONE, gates - 1}};
}

INLINE void lstm_forward(const int variant, const int stage, forward_values *v) {
    const int G = lstm_g(variant), O = lstm_o(variant), C = lstm_c(variant), peephole = variant & LSTM_PEEPHOLE;
    if (stage == OUTPUT) {
        v->h = v_mul(v->kept[O], v_tanh(v->kept[C]));
        return;
    }
    const vec i = v_logistic(peephole ? v_fma(v->p[0], v->c, v->a[0]) : v->a[0]);
    const vec g = v_tanh(v->a[G]);
    vec c = v->c;
    if (variant & LSTM_COUPLED) c = v_mul(v_sub(v_set1(1), i), c);
    if (G == 2) {
        v->kept[1] = v_logistic(peephole ? v_fma(v->p[1], v->c, v->a[1]) : v->a[1]);
        c = v_mul(v->kept[1], c);
    }
    c = v_fma(i, g, c);
    v->kept[0] = i;
    v->kept[G] = g;
    v->kept[O] = v_logistic(peephole ? v_fma(v->p[2], c, v->a[O]) : v->a[O]);
    v->kept[C] = c;
}

INLINE void lstm_tangent(const int variant, const int stage, forward_values *v, const reverse_values *at) {
    (void)stage;
    const int G = lstm_g(variant), O = lstm_o(variant), C = lstm_c(variant), peephole = variant & LSTM_PEEPHOLE;
    const vec i = at->kept[0], g = at->kept[G], o = at->kept[O], tanh_c = v_tanh(at->kept[C]);
    const vec di = activation_gradient(LOGISTIC, i, peephole ? v_fma(v->p[0], v->c, v->a[0]) : v->a[0]);
    const vec dg = activation_gradient(TANH, g, v->a[G]);
    vec dc = v->c; /* c_t = f c_{t-1} + i g */
    if (variant & LSTM_COUPLED) dc = v_fnma(di, at->c, v_mul(v_sub(v_set1(1), i), dc));
    if (G == 2) {
        const vec f = at->kept[1], da_f = peephole ? v_fma(v->p[1], v->c, v->a[1]) : v->a[1];
        dc = v_fma(activation_gradient(LOGISTIC, f, da_f), at->c, v_mul(f, dc));
    }
    dc = v_fma(i, dg, v_fma(di, g, dc));
    const vec d_o = activation_gradient(LOGISTIC, o, peephole ? v_fma(v->p[2], dc, v->a[O]) : v->a[O]);
    v->h = v_fma(d_o, tanh_c, activation_gradient(TANH, tanh_c, v_mul(o, dc))); /* h_t = o tanh(c_t) */
    v->kept[C] = dc;
}

INLINE void lstm_backward(const int variant, const int stage, reverse_values *v) {
    (void)stage;
    const int G = lstm_g(variant), O = lstm_o(variant), C = lstm_c(variant), peephole = variant & LSTM_PEEPHOLE;
    const vec i = v->kept[0], g = v->kept[G], o = v->kept[O], tanh_c = v_tanh(v->kept[C]);
    const vec da_o = activation_gradient(LOGISTIC, o, v_mul(v->dh, tanh_c)); /* h_t = o tanh(c_t) */
    vec dc = v_add(v->direct, activation_gradient(TANH, tanh_c, v_mul(v->dh, o)));
    if (peephole) dc = v_fma(v->p[2], da_o, dc);                                      /* a_o: p_o c_t */
    const vec da_g = activation_gradient(TANH, g, v_mul(dc, i));                      /* c_t: i g */
    const vec di = variant & LSTM_COUPLED ? v_mul(dc, v_sub(g, v->c)) : v_mul(dc, g); /* c_t: i g [+ (1 - i) c] */
    const vec da_i = activation_gradient(LOGISTIC, i, di);
    vec dc_before = dc;
    if (variant & LSTM_COUPLED) dc_before = v_mul(dc, v_sub(v_set1(1), i)); /* c_t: (1 - i) c_{t-1} */
    if (G == 2) {
        const vec da_f = activation_gradient(LOGISTIC, v->kept[1], v_mul(dc, v->c)); /* c_t: f c_{t-1} */
        dc_before = v_mul(dc, v->kept[1]);
        if (peephole) dc_before = v_fma(v->p[1], da_f, dc_before); /* a_f: p_f c_{t-1} */
        v->delta[1] = da_f;
    }
    if (peephole) dc_before = v_fma(v->p[0], da_i, dc_before); /* a_i: p_i c_{t-1} */
    v->delta[0] = da_i;
    v->delta[G] = da_g;
    v->delta[O] = da_o;
    v->direct = dc_before;
}
