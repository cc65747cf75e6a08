/* exp, tanh and the logistic function on vectors.
 *
 * e^-x = 2^n (1 + p): Cody & Waite (1980) reduction -x = n ln2 - r with n the nearest whole number, so that |r| is at
 * most ln2 / 2, then p = e^-r - 1 = r^2 q(-r) - r with q a minimax polynomial there. Its error, relative to e^-r:
 * 2^-28.0 (float32), 2^-56.3 (float64). Inputs are taken to [-EXP_RANGE, EXP_RANGE], beyond which the result is 0 or
 * infinity.
 *
 * tanh, float32: with t = |x| - centre, c_0 + t (c_1 + c_2 t + ... + c_7 t^6), centre and minimax coefficients from
 * tables of the eight parts of [0, TANH_RANGE] that begin at 0, 0.30, 0.60, 1.20, 1.81, 3.01, 4.22 and 6.63: where
 * TANH_SLOPE |x| + 2 is 2, 3, 4, 6, 8 ... 24, so that its first bits say which. c_0 is tanh centre, for centres chosen
 * so that it is nearly exact in float32 (2^-29), and |x| itself in the first two parts, whose centre is 0. The error of
 * a polynomial is at most 2^-26 of the result.
 *
 * tanh, float64: x + x^3 p(x^2) up to TANH_SPLIT (error of the polynomial 2^-59.7), 1 - 2 / (e^(2|x|) + 1) beyond. Both
 * polynomials take the same operations, so there is but one, whose argument and coefficients are chosen lane by lane.
 * There ln2 need not be in two parts: the larger n, the less the error of e counts. From TANH_RANGE on either is 1.
 *
 * logistic: 1 / (1 + e^-x), with 2^n p added to the smaller of 1 and 2^n, then the larger one: so it is mostly the last
 * addition whose rounding counts.
 *
 * All are within 2 ULP (tanh in float32 .95, 1.3 where a multiply-add rounds twice), and in float32 monotone; results
 * below the smallest normal number are flushed to zero. */

#define EXP_RANGE BY_BITS(88, 709)
#define EXPONENT_BIAS BY_BITS(0x1.8p23f + REAL_BIAS, 0x1.8p52 + REAL_BIAS)
#define TANH_RANGE BY_BITS(9.03f, 20)
#define TANH_SLOPE 3.32f
#define LN2_HIGH BY_BITS(0x1.62e4p-1f, 0x1.62e42fefa38p-1)
#define LN2_LOW BY_BITS(0x1.7f7d1cp-20f, 0x1.ef35793c7673p-45)
#define LOG2_E BY_BITS(1.44269504f, 1.4426950408889634)
#define TANH_SPLIT 0.5625
#define LN2 0.69314718055994531
enum { TANH_PARTS = 8, TANH_DEGREE = 7 };

#if FRNN_BITS == 32
static const real exp_q[] = {4.9999994e-01f, 1.6666521e-01f, 4.166839e-02f, 8.36871e-03f, 1.3814608e-03f};
static const real tanh_centre[TANH_PARTS] = {0, 0, 0.6023987f, 1.5068012f, 2.405711f, 3.6036024f, 6.005277f, 7.859615f};
static const real tanh_c[TANH_DEGREE + 1][TANH_PARTS] = {
    {1, 1, 0.5387542f, 0.90636975f, 0.98385876f, 0.99851865f, 0.99998784f, 0.9999997f},
    {0, 7.4213945e-05f, 0.70974326f, 0.17849389f, 0.03202197f, 0.0029605145f, 2.4375488e-05f, 5.9587194e-07f},
    {-1.348673e-07f, -0.0012399758f, -0.38234964f, -0.16178134f, -0.03150432f, -0.0029561953f, -2.4206e-05f,
     -5.9727984e-07f},
    {-0.33332494f, -0.3245291f, -0.03099028f, 0.08713572f, 0.020321233f, 0.0019648995f, 1.5695761e-05f, 3.989065e-07f},
    {-1.7274875e-04f, -0.03438792f, 0.14685504f, -0.025058538f, -0.009504933f, -9.75503e-04f, -8.99606e-06f,
     -1.936968e-07f},
    {0.13493642f, 0.21271122f, -0.062452506f, -0.0023730379f, 0.0032890656f, 3.8600565e-04f, 3.858684e-06f,
     7.634282e-08f},
    {-0.007166184f, -0.10614991f, -0.006925981f, 0.0070747025f, -7.0452155e-04f, -1.309206e-04f, 6.3220733e-07f,
     -3.2238834e-08f},
    {-0.04057738f, 0.014949793f, 0.009695668f, -0.0038922082f, -1.8647172e-06f, 3.4604956e-05f, 1.1931666e-06f,
     9.735915e-09f},
};
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

/* -x = n ln2 - r: n + EXPONENT_BIAS, where the last bits of the mantissa are the exponent of 2^n; and r. */
INLINE vec biased_ln2(vec x) { return v_fma(x, v_set1(-LOG2_E), v_set1(EXPONENT_BIAS)); }
INLINE vec rest_ln2(vec x, vec biased) {
    const vec n = v_sub(biased, v_set1(EXPONENT_BIAS));
    return v_fma(n, v_set1(LN2_LOW), v_fma(n, v_set1(LN2_HIGH), x));
}

/* 1 - e^-r */
INLINE vec fall(vec r) {
    vec q = v_set1(exp_q[LENGTH(exp_q) - 1]);
    for (int i = LENGTH(exp_q) - 2; i >= 0; --i) q = v_fnma(q, r, v_set1(exp_q[i]));
    return v_fnma(v_mul(r, r), q, r);
}

INLINE vec v_exp(vec x) {
    const vec bounded = v_max(v_set1(-EXP_RANGE), v_min(v_set1(EXP_RANGE + 1), x));
    const vec minus = v_sub(v_set1(0), bounded), biased = biased_ln2(minus);
    const vec most = v_min(v_set1(EXPONENT_BIAS + REAL_BIAS), biased); /* what an exponent holds: at times one less */
    const vec e = v_mul(v_sub(v_set1(1), fall(rest_ln2(minus, biased))), v_exponent(most));
    return v_fma(v_sub(biased, most), e, e);
}

#if FRNN_BITS == 32
INLINE vec v_tanh(vec x) {
    const vec magnitude = v_min(v_set1(TANH_RANGE), v_abs(x));
    const vec_index part = v_index(v_fma(magnitude, v_set1(TANH_SLOPE), v_set1(2)));
    const vec t = v_sub(magnitude, v_lookup(tanh_centre, part));
    vec q = v_lookup(tanh_c[TANH_DEGREE], part);
    for (int i = TANH_DEGREE - 1; i > 0; --i) q = v_fma(q, t, v_lookup(tanh_c[i], part));
    return v_copysign(v_fma(q, t, v_min(v_lookup(tanh_c[0], part), magnitude)), x);
}
#else
INLINE vec up_to_split(vec magnitude, vec small, vec large) {
    return v_select_le(magnitude, v_set1(TANH_SPLIT), small, large);
}

INLINE vec v_tanh(vec x) {
    const vec one = v_set1(1), magnitude = v_abs(x), bounded = v_min(v_set1(TANH_RANGE), magnitude);
    const vec twice = v_add(bounded, bounded);
    const vec biased = v_fma(twice, v_set1(LOG2_E), v_set1(EXPONENT_BIAS));
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
#endif

INLINE vec v_logistic(vec x) {
    const vec one = v_set1(1), bounded = v_max(v_set1(-EXP_RANGE), v_min(v_set1(EXP_RANGE), x));
    const vec biased = biased_ln2(bounded), scale = v_exponent(biased);
    const vec lesser = v_fnma(fall(rest_ln2(bounded, biased)), scale, v_min(one, scale));
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
