/* The constant error carousel (Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9, 1997, section
 * 3.2): a self-loop of weight 1 and nothing else,
 *
 *     a_t = W g(x_t) + b        c_t = c_{t-1} + a_t        y_t = c_t or tanh(c_t)
 *
 * The variant is g, with the readout as a flag. The loops apply g to x before the product and g' after it. Where y_t
 * is c_t itself, the state is the output, h, and nothing is recorded. */

enum { CEC_TANH_READOUT = 8 };

INLINE cell_shape cec_shape(const int variant) {
    const int tanh_readout = (variant & CEC_TANH_READOUT) != 0;
    return (cell_shape){.gates = 1,
                        .columns = 1,
                        .x = 1,
                        .input = variant & 7,
                        .h_in_forward = !tanh_readout,
                        .running_sum = !tanh_readout,
                        .y_in_reverse = tanh_readout,
                        .direct = 1,
                        .kept = tanh_readout,
                        .given = {tanh_readout ? 1 : 0},
                        .lasting = tanh_readout ? 1 : 0,
                        .c = tanh_readout ? 0 : NONE,
                        .second = NONE};
}

INLINE void cec_forward(const int variant, const int stage, forward_values *v) {
    (void)stage;
    if (variant & CEC_TANH_READOUT) {
        v->kept[0] = v_add(v->c, v->a[0]);
        v->h = v_tanh(v->kept[0]);
    } else {
        v->h = v_add(v->h, v->a[0]);
    }
}

INLINE void cec_tangent(const int variant, const int stage, forward_values *v, const reverse_values *at) {
    (void)stage;
    if (variant & CEC_TANH_READOUT) {
        v->kept[0] = v_add(v->c, v->a[0]); /* c_t = c_{t-1} + a_t */
        v->h = activation_gradient(TANH, at->y, v->kept[0]);
    } else {
        v->h = v_add(v->h, v->a[0]);
    }
}

INLINE void cec_backward(const int variant, const int stage, reverse_values *v) {
    (void)stage;
    vec dc = v->dh; /* y_t = c_t, whose gradient has come with that of y_t */
    if (variant & CEC_TANH_READOUT) dc = v_add(v->direct, activation_gradient(TANH, v->y, v->dh));
    v->delta[0] = dc; /* c_t = c_{t-1} + a_t */
    v->direct = dc;
}
