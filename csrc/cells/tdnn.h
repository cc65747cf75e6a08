/* The time-delay neural network (Waibel, Hanazawa, Hinton, Shikano & Lang, IEEE Trans. ASSP 37, 1989), the feed-forward
 * alternative:
 *
 *     a_t = sum over k of W_k x_{t + context[k]} + b        y_t = f(a_t)
 *
 * with f the variant. The sum over the context is body/context.h's. */

INLINE cell_shape tdnn_shape(const int f) {
    (void)f;
    return (cell_shape){.gates = 1, .columns = 1, .x = 1, .y_in_reverse = 1, .c = NONE, .second = NONE};
}

INLINE void tdnn_forward(const int f, const int stage, forward_values *v) {
    (void)stage;
    v->h = activation(f, v->a[0]);
}

INLINE void tdnn_tangent(const int f, const int stage, forward_values *v, const reverse_values *at) {
    (void)stage;
    v->h = activation_gradient(f, at->y, v->a[0]); /* y_t = f(a_t) */
}

INLINE void tdnn_backward(const int f, const int stage, reverse_values *v) {
    (void)stage;
    v->delta[0] = activation_gradient(f, v->y, v->dh); /* y_t = f(a_t) */
}
