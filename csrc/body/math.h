/* exp, tanh and the logistic function on vectors.
 *
 * exp: Cody & Waite (1980) reduction x = n ln2 + r with n = floor(x / ln2), so that 0 <= r < ln2, then e^r = 1 + r +
 * r^2 q(r) with q a least-squares polynomial on [0, ln2], times 2^n. As r >= 0 and all coefficients are positive, every
 * operation is monotone in x, and so is the result. Relative error of the polynomial: 2^-27.8 (float32), 2^-57.1
 * (float64). Inputs are taken to [-EXP_RANGE, EXP_RANGE], beyond which the result is 0 or infinity.
 *
 * tanh: x + x^3 p(x^2) up to TANH_SPLIT (error of the polynomial 2^-29.4, 2^-59.7), 1 - 2 / (e^(2|x|) + 1) beyond, with
 * the sign of x; each piece is monotone (near zero since the true slope exceeds the error). There ln2 need not be in
 * two parts: the larger n, the less the error of e counts. From TANH_RANGE / 2 on the result is 1. logistic: 1 / (1 +
 * e^-x) down to LOGISTIC_SPLIT; beyond, where the rounding of that sum would cost too much, e - e * e / (1 + e) with e
 * = e^x.
 *
 * All are within 2 ULP; results below the smallest normal number are flushed to zero. */

#define EXP_RANGE BY_BITS(104, 746)
#define TANH_RANGE BY_BITS(20, 40)
#define LN2 BY_BITS(0.693147181f, 0.69314718055994531)
#define LN2_HIGH BY_BITS(0x1.62e4p-1f, 0x1.62e42fefa38p-1)
#define LN2_LOW BY_BITS(0x1.7f7d1cp-20f, 0x1.ef35793c7673p-45)
#define LOG2_E BY_BITS(1.44269504f, 1.4426950408889634)
#define LOGISTIC_SPLIT BY_BITS(-1.9375f, -1.9375)
#define TANH_SPLIT BY_BITS(0.5625f, 0.5625)

#if FRNN_BITS == 32
static const real exp_q[] = {5.0000286e-01f, 1.6662596e-01f, 4.1876215e-02f, 7.836796e-03f, 1.9293195e-03f};
static const real tanh_p[] = {-3.3333313e-01f, 1.3332443e-01f, -5.383673e-02f, 2.1005271e-02f, -6.177371e-03f};
#else
static const real exp_q[] = {0.49999999999996464,    0.16666666666824875,    0.04166666663876293,
                             0.008333333596307165,   0.0013888873932732103,  0.0001984181365400294,
                             2.4788660941695417e-05, 2.7756836644423807e-06, 2.564187328442785e-07,
                             3.5254505595993066e-08};
static const real tanh_p[] = {-0.33333333333333276,   0.13333333333322941,   -0.053968253961650434,
                              0.021869488325792552,   -0.008863231619573116, 0.003592082118269243,
                              -0.0014554790041281847, 0.0005881816581234656, -0.0002327123595132919,
                              8.235671500087626e-05,  -1.890199039270639e-05};
#endif
#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* c[0] + c[1] x + ... + c[n-1] x^(n-1), by Horner's rule */
INLINE vec polynomial(const real *c, int n, vec x) {
    vec p = v_set1(c[n - 1]);
    for (int i = n - 2; i >= 0; --i) p = v_fma(p, x, v_set1(c[i]));
    return p;
}

/* 2^n e^r, 0 <= r < ln2, n whole */
INLINE vec exp_reduced(vec n, vec r) {
    const vec q = polynomial(exp_q, LENGTH(exp_q), r);
    return v_scale2(v_add(v_fma(v_mul(r, r), q, r), v_set1(1)), n);
}

/* x = n ln2 + r */
INLINE vec whole_ln2(vec x) { return v_floor(v_mul(x, v_set1(LOG2_E))); }
INLINE vec rest_ln2(vec x, vec n) { return v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), x)); }

INLINE vec v_exp(vec x) {
    const vec bounded = v_max(v_set1(-EXP_RANGE), v_min(v_set1(EXP_RANGE), x)), n = whole_ln2(bounded);
    const vec low = v_min(v_set1(2 * REAL_MIDDLE), n); /* as v_scale2 takes; what is left of 2^n comes after it */
    return v_mul(exp_reduced(low, rest_ln2(bounded, n)), v_scale2(v_set1(1), v_sub(n, low)));
}

INLINE vec v_tanh(vec x) {
    const vec one = v_set1(1), magnitude = v_abs(x), square = v_mul(x, x);
    const vec small = v_fma(v_mul(x, square), polynomial(tanh_p, LENGTH(tanh_p), square), x);
    const vec twice = v_min(v_set1(TANH_RANGE), v_add(magnitude, magnitude));
    const vec n = whole_ln2(twice), e = exp_reduced(n, v_fnma(n, v_set1(LN2), twice));
    const vec large = v_sub(one, v_div(v_set1(2), v_add(e, one)));
    return v_select_le(magnitude, v_set1(TANH_SPLIT), small, v_copysign(large, x));
}

INLINE vec v_logistic(vec x) {
    const vec one = v_set1(1), split = v_set1(LOGISTIC_SPLIT), minus_x = v_sub(v_set1(0), x);
    const vec power = v_max(v_set1(-EXP_RANGE), v_select_le(x, split, x, minus_x)), n = whole_ln2(power);
    const vec e = exp_reduced(n, rest_ln2(power, n));
    const vec inverse = v_div(one, v_add(one, e));
    return v_select_le(x, split, v_fnma(e, v_mul(e, inverse), e), inverse);
}

/* The functions that cells are made of, and dJ/da from dJ/dy and y = f(a): every f' can be written in y. */
enum { IDENTITY, TANH, RELU, LOGISTIC };

INLINE vec activation(const int f, vec a) {
    switch (f) {
    case TANH: return v_tanh(a);
    case RELU: return v_max(v_set1(0), a);
    case LOGISTIC: return v_logistic(a);
    default: return a;
    }
}

/* f' is 1 - y^2, [y > 0], y (1 - y) or 1 */
INLINE vec activation_gradient(const int f, vec y, vec dy) {
    switch (f) {
    case TANH: return v_mul(dy, v_fnma(y, y, v_set1(1)));
    case RELU: return v_select_le(y, v_set1(0), v_set1(0), dy);
    case LOGISTIC: return v_mul(dy, v_mul(y, v_sub(v_set1(1), y)));
    default: return dy;
    }
}
