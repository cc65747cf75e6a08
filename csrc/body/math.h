/* exp, tanh and the logistic function on vectors.
 *
 * e^x = 2^n (1 + p): Cody & Waite (1980) reduction x = n ln2 + r with n the nearest whole number, so that |r| <= ln2 /
 * 2, then p = e^r - 1 = r + r^2 q(r) with q a minimax polynomial there. Its error, relative to e^r: 2^-28.0 (float32),
 * 2^-56.3 (float64). Inputs are taken to [-EXP_RANGE, EXP_RANGE], beyond which the result is 0 or infinity.
 *
 * tanh: x + x^3 p(x^2) up to TANH_SPLIT (error of the polynomial 2^-29.4, 2^-59.7), 1 - 2 / (e^(2|x|) + 1) beyond, with
 * the sign of x. Both polynomials take the same operations, so there is but one, whose argument and coefficients are
 * chosen lane by lane. There ln2 need not be in two parts: the larger n, the less the error of e counts. From half of
 * TANH_RANGE on the result is 1.
 *
 * logistic: 1 / (1 + e^-x), with 2^n p added to the smaller of 1 and 2^n, then the larger one: so it is mostly the last
 * addition whose rounding counts.
 *
 * All are within 2 ULP, and in float32 monotone; results below the smallest normal number are flushed to zero. */

#define EXP_RANGE BY_BITS(88, 709)
#define EXPONENT_BIAS BY_BITS(0x1.8p23f + REAL_BIAS, 0x1.8p52 + REAL_BIAS)
#define TANH_RANGE BY_BITS(20, 40)
#define LN2 BY_BITS(0.693147181f, 0.69314718055994531)
#define LN2_HIGH BY_BITS(0x1.62e4p-1f, 0x1.62e42fefa38p-1)
#define LN2_LOW BY_BITS(0x1.7f7d1cp-20f, 0x1.ef35793c7673p-45)
#define LOG2_E BY_BITS(1.44269504f, 1.4426950408889634)
#define TANH_SPLIT BY_BITS(0.5625f, 0.5625)

#if FRNN_BITS == 32
static const real exp_q[] = {4.9999994e-01f, 1.6666521e-01f, 4.166839e-02f, 8.36871e-03f, 1.3814608e-03f};
static const real tanh_p[] = {-3.3333313e-01f, 1.3332443e-01f, -5.383673e-02f, 2.1005271e-02f, -6.177371e-03f};
#else
static const real exp_q[] = {0.5000000000000011,     0.16666666666666413,    0.04166666666653025,
                             0.008333333333494335,   0.001388888894360135,   0.00019841269506790164,
                             2.4801493132647705e-05, 2.7557586248189413e-06, 2.7630235104209464e-07,
                             2.500008006258301e-08};
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

/* x = n ln2 + r: n + EXPONENT_BIAS, where the last bits of the mantissa are the exponent of 2^n; and r. */
INLINE vec biased_ln2(vec x) { return v_fma(x, v_set1(LOG2_E), v_set1(EXPONENT_BIAS)); }
INLINE vec rest_ln2(vec x, vec biased) {
    const vec n = v_sub(biased, v_set1(EXPONENT_BIAS));
    return v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), x));
}

/* e^r - 1 */
INLINE vec exp_rest(vec r) { return v_fma(v_mul(r, r), polynomial(exp_q, LENGTH(exp_q), r), r); }

INLINE vec v_exp(vec x) {
    const vec bounded = v_max(v_set1(-EXP_RANGE), v_min(v_set1(EXP_RANGE + 1), x)), biased = biased_ln2(bounded);
    const vec most = v_min(v_set1(EXPONENT_BIAS + REAL_BIAS), biased); /* what an exponent holds: at times one less */
    const vec e = v_mul(v_add(v_set1(1), exp_rest(rest_ln2(bounded, biased))), v_exponent(most));
    return v_fma(v_sub(biased, most), e, e);
}

INLINE vec up_to_split(vec magnitude, vec small, vec large) {
    return v_select_le(magnitude, v_set1(TANH_SPLIT), small, large);
}

INLINE vec v_tanh(vec x) {
    const vec one = v_set1(1), magnitude = v_abs(x);
    const vec twice = v_min(v_set1(TANH_RANGE), v_add(magnitude, magnitude)), biased = biased_ln2(twice);
    const vec r = v_fnma(v_sub(biased, v_set1(EXPONENT_BIAS)), v_set1(LN2), twice), scale = v_exponent(biased);
    const vec a = up_to_split(magnitude, magnitude, r), u = up_to_split(magnitude, v_mul(x, x), r);
    vec p = v_set1(0);
    for (int i = LENGTH(tanh_p) - 1; i >= 0; --i) {
        const real q = i < LENGTH(exp_q) ? exp_q[i] : 0;
        const vec c = up_to_split(magnitude, v_set1(tanh_p[i]), v_set1(q));
        p = i == LENGTH(tanh_p) - 1 ? c : v_fma(p, u, c);
    }
    const vec value = v_fma(v_mul(u, a), p, a); /* tanh |x|, or e^r - 1 */
    const vec large = v_sub(one, v_div(v_set1(2), v_fma(value, scale, v_add(one, scale))));
    return v_copysign(up_to_split(magnitude, value, large), x);
}

INLINE vec v_logistic(vec x) {
    const vec one = v_set1(1), power = v_max(v_set1(-EXP_RANGE), v_min(v_set1(EXP_RANGE), v_sub(v_set1(0), x)));
    const vec biased = biased_ln2(power), scale = v_exponent(biased);
    const vec lesser = v_fma(exp_rest(rest_ln2(power, biased)), scale, v_min(one, scale));
    return v_div(one, v_add(lesser, v_max(one, scale)));
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
