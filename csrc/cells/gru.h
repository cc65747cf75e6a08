/* The gated recurrent unit (Cho et al., EMNLP 2014). With
 *
 *     r = logistic(W_r x_t + b_r + R_r h_{t-1})        z = logistic(W_z x_t + b_z + R_z h_{t-1})
 *
 * the new values n and the state are
 *
 *     n = tanh(m + r q), m = W_n x_t + b_in, q = R_n h_{t-1} + b_hn        h_t = (1 - z) n + z h_{t-1}
 *
 * or, in the original with the reset before the product, n = tanh(a_n), a_n = W_n x_t + b_n + R_n (r h_{t-1}): a second
 * stage of the step. Kept of every step are r, z, n and q, or r, z, n and r h_{t-1}. */

enum { GRU_RESET_BEFORE = 1 };

INLINE cell_shape gru_shape(const int variant) {
    if (variant & GRU_RESET_BEFORE) {
        return (cell_shape){.gates = 3,
                            .columns = 3,
                            .block = {0, 1, 2},
                            .x = 3,
                            .h = 2,
                            .h_in_forward = 1,
                            .h_in_reverse = 1,
                            .direct = 1,
                            .kept = 4,
                            .given = {1 | 2 | 8, 4},
                            .lasting = 2 | 8,
                            .deltas = {2 | 4, 1},
                            .c = NONE,
                            .second = 3};
    }
    /* The columns are m, r, z, q: W x_t goes to the first three and R h_{t-1} to the last three. */
    return (cell_shape){.gates = 3,
                        .columns = 4,
                        .block = {2, 0, 1, 2},
                        .x = 3,
                        .h_first = 1,
                        .h = 3,
                        .h_in_forward = 1,
                        .h_in_reverse = 1,
                        .direct = 1,
                        .kept = 4,
                        .given = {1 | 2 | 8, 0, 4},
                        .output = 1,
                        .passed = {1, 2},
                        .c = NONE,
                        .second = NONE};
}

/* h_t = n + z (h_{t-1} - n) */
INLINE vec gru_mix(vec z, vec n, vec h) { return v_fma(z, v_sub(h, n), n); }

INLINE void gru_forward(const int variant, const int stage, forward_values *v) {
    enum { R, Z, N, LAST };
    if (stage == 0 && variant & GRU_RESET_BEFORE) {
        v->kept[R] = v_logistic(v->a[0]);
        v->kept[Z] = v_logistic(v->a[1]);
        v->kept[LAST] = v_mul(v->kept[R], v->h);
    } else if (stage == 0) {
        v->kept[R] = v_logistic(v->a[1]);
        v->kept[Z] = v_logistic(v->a[2]);
        v->kept[LAST] = v->a[3];
        v->kept[N] = v_fma(v->kept[R], v->a[3], v->a[0]); /* n before its tanh */
    } else {
        v->kept[N] = v_tanh(stage == OUTPUT ? v->kept[N] : v->a[0]);
        v->h = gru_mix(v->kept[Z], v->kept[N], v->h);
    }
}

/* The tangent of h_t = n + z (h_{t-1} - n), whose own tangents are dz, dn, dh */
INLINE vec gru_mix_tangent(const reverse_values *at, vec z, vec n, vec dz, vec dn, vec dh) {
    return v_fma(z, v_sub(dh, dn), v_fma(dz, v_sub(at->h, n), dn));
}

INLINE void gru_tangent(const int variant, const int stage, forward_values *v, const reverse_values *at) {
    enum { R, Z, N, LAST };
    const vec r = at->kept[R], z = at->kept[Z], n = at->kept[N];
    if (!(variant & GRU_RESET_BEFORE)) {
        const vec dr = activation_gradient(LOGISTIC, r, v->a[1]), dz = activation_gradient(LOGISTIC, z, v->a[2]);
        /* n = tanh(m + r q) */
        const vec dn = activation_gradient(TANH, n, v_fma(r, v->a[3], v_fma(dr, at->kept[LAST], v->a[0])));
        v->h = gru_mix_tangent(at, z, n, dz, dn, v->h);
    } else if (stage == 0) {
        const vec dr = activation_gradient(LOGISTIC, r, v->a[0]);
        v->kept[Z] = activation_gradient(LOGISTIC, z, v->a[1]);
        v->kept[LAST] = v_fma(dr, at->h, v_mul(r, v->h)); /* r h_{t-1} */
    } else {
        v->h = gru_mix_tangent(at, z, n, v->kept[Z], activation_gradient(TANH, n, v->a[0]), v->h);
    }
}

INLINE void gru_backward(const int variant, const int stage, reverse_values *v) {
    enum { R, Z, N, LAST };
    const vec r = v->kept[R], z = v->kept[Z], n = v->kept[N];
    if (variant & GRU_RESET_BEFORE && stage == 1) { /* dh is here the gradient of r h_{t-1} */
        v->delta[0] = activation_gradient(LOGISTIC, r, v_mul(v->dh, v->h));
        v->direct = v_fma(v->dh, r, v->direct);
        return;
    }
    const vec dh = v->dh;
    /* h_t = n + z (h_{t-1} - n) */
    const vec da_n = activation_gradient(TANH, n, v_fnma(dh, z, dh));
    const vec da_z = activation_gradient(LOGISTIC, z, v_mul(dh, v_sub(v->h, n)));
    v->direct = v_mul(dh, z);
    if (variant & GRU_RESET_BEFORE) {
        v->delta[1] = da_z;
        v->delta[2] = da_n;
        return;
    }
    v->delta[0] = da_n; /* n = tanh(m + r q) */
    v->delta[1] = activation_gradient(LOGISTIC, r, v_mul(da_n, v->kept[LAST]));
    v->delta[2] = da_z;
    v->delta[3] = v_mul(da_n, r);
}
