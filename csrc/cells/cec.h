/* The constant error carousel (Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9, 1997, section
 * 3.2): a self-loop of weight 1 and nothing else,
 *
 *     a_t = W g(x_t) + b        c_t = c_{t-1} + a_t        y_t = c_t or tanh(c_t)
 *
 * The variant is g, with the readout as a flag. The loops apply g to x before the product and g' after it. */

enum { CEC_TANH_READOUT = 8 };

INLINE cell_shape cec_shape(const int variant) {
    return (cell_shape){.gates = 1,
                        .columns = 1,
                        .x = 1,
                        .input = variant & 7,
                        .y_in_reverse = variant & CEC_TANH_READOUT,
                        .direct = 1,
                        .kept = 1,
                        .given = {1, 0},
                        .lasting = 1,
                        .c = 0,
                        .second = NONE};
}

INLINE void cec_forward(const int variant, const int stage, forward_values *v) {
    (void)stage;
    v->kept[0] = v_add(v->c, v->a[0]);
    v->h = variant & CEC_TANH_READOUT ? v_tanh(v->kept[0]) : v->kept[0];
}

INLINE void cec_tangent(const int variant, const int stage, forward_values *v, const reverse_values *at) {
    (void)stage;
    const vec dc = v_add(v->c, v->a[0]); /* c_t = c_{t-1} + a_t */
    v->h = variant & CEC_TANH_READOUT ? activation_gradient(TANH, at->y, dc) : dc;
    v->kept[0] = dc;
}

INLINE void cec_backward(const int variant, const int stage, reverse_values *v) {
    (void)stage;
    /* y_t = readout(c_t), and c_{t+1} = c_t + a_{t+1} */
    const vec dc = v_add(v->direct, variant & CEC_TANH_READOUT ? activation_gradient(TANH, v->y, v->dh) : v->dh);
    v->delta[0] = dc; /* c_t = c_{t-1} + a_t */
    v->direct = dc;
}
