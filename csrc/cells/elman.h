/* The simple recurrent network (Elman, "Finding structure in time", Cognitive Science 14, 1990):
 *
 *     a_t = W x_t + b_ih + R h_{t-1} + b_hh        h_t = f(a_t)
 *
 * with f one of tanh, relu, logistic, identity (the variant). */

INLINE cell_shape elman_shape(const int f) {
    (void)f;
    return (cell_shape){.gates = 1, .columns = 1, .x = 1, .h = 1, .y_in_reverse = 1, .c = NONE, .second = NONE};
}

INLINE void elman_forward(const int f, const int stage, forward_values *v) {
    (void)stage;
    v->h = activation(f, v->a[0]);
}

INLINE void elman_tangent(const int f, const int stage, forward_values *v, const reverse_values *at) {
    (void)stage;
    v->h = activation_gradient(f, at->y, v->a[0]); /* h_t = f(a_t) */
}

INLINE void elman_backward(const int f, const int stage, reverse_values *v) {
    (void)stage;
    v->delta[0] = activation_gradient(f, v->y, v->dh); /* h_t = f(a_t) */
}
