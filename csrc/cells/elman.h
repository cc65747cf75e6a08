/* The simple recurrent network (Elman, "Finding structure in time", Cognitive Science 14, 1990):
 *
 *     a_t = W x_t + b_ih + R h_{t-1} + b_hh        h_t = f(a_t)
 *
 * with f one of tanh, relu, logistic, identity. All four derivatives can be written in h_t, so backward needs no a_t. */

enum { ELMAN_TANH, ELMAN_RELU, ELMAN_LOGISTIC, ELMAN_IDENTITY };

/* h_t = f(a_t) */
INLINE vec elman_forward(const int f, vec a) {
    switch (f) {
    case ELMAN_TANH: return v_tanh(a);
    case ELMAN_RELU: return v_max(v_set1(0), a);
    case ELMAN_LOGISTIC: return v_logistic(a);
    default: return a;
    }
}

/* delta_t = dJ/da_t = dh_t f'(a_t), of h_t = f(a_t): f' is 1 - h^2, [h > 0], h (1 - h) or 1 */
INLINE vec elman_backward(const int f, vec h, vec dh) {
    switch (f) {
    case ELMAN_TANH: return v_mul(dh, v_fnma(h, h, v_set1(1)));
    case ELMAN_RELU: return v_select_le(h, v_set1(0), v_set1(0), dh);
    case ELMAN_LOGISTIC: return v_mul(dh, v_mul(h, v_sub(v_set1(1), h)));
    default: return dh;
    }
}
