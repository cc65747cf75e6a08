/* Any processor: the compiler's 16-byte vectors (the vector extension of gcc and clang), products and sums rounded
 * apart, since a fused multiply-add may not exist. */
#include "../body/real.h"

#define KERNELS BY_BITS(frnn_generic_f32, frnn_generic_f64)
#define TILE_SUMS 8

typedef real vec __attribute__((vector_size(16)));
typedef real_int vec_int __attribute__((vector_size(16)));
#define VL ((int)(sizeof(vec) / sizeof(real)))

INLINE vec v_load(const real *p) {
    vec a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}
INLINE void v_store(real *p, vec a) { __builtin_memcpy(p, &a, sizeof a); }
INLINE void v_stream(real *p, vec a) { v_store(p, a); }
INLINE vec v_load_n(const real *p, int64_t n) {
    vec a = {0};
    for (int i = 0; i < n; ++i) a[i] = p[i];
    return a;
}
INLINE void v_store_n(real *p, vec a, int64_t n) {
    for (int i = 0; i < n; ++i) p[i] = a[i];
}
INLINE vec v_set1(real a) { return a - (vec){0}; }

INLINE vec v_add(vec a, vec b) { return a + b; }
INLINE vec v_sub(vec a, vec b) { return a - b; }
INLINE vec v_mul(vec a, vec b) { return a * b; }
INLINE vec v_div(vec a, vec b) { return a / b; }
INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec v_fnma(vec a, vec b, vec c) { return c - a * b; }

INLINE vec choose(vec_int mask, vec yes, vec no) { return (vec)((mask & (vec_int)yes) | (~mask & (vec_int)no)); }
INLINE vec_int sign_bits(void) { return (vec_int)v_set1((real)-0.0); }

/* b where either is NaN */
INLINE vec v_min(vec a, vec b) { return choose((vec_int)(a < b), a, b); }
INLINE vec v_max(vec a, vec b) { return choose((vec_int)(a > b), a, b); }
INLINE vec v_abs(vec a) { return (vec)((vec_int)a & ~sign_bits()); }
INLINE vec v_copysign(vec a, vec b) { return choose(sign_bits(), b, a); }
INLINE vec v_select_le(vec a, vec b, vec yes, vec no) { return choose((vec_int)(a <= b), yes, no); }

/* the last bits of the mantissa where the exponent is */
INLINE vec v_exponent(vec a) { return (vec)((vec_int)a << REAL_MANTISSA); }
#if FRNN_BITS == 32
/* the place in a table of eight: the three bits from TABLE_SHIFT on, others are not heeded; and what stands there */
typedef vec_int vec_index;
INLINE vec_index v_index(vec a) { return (vec_int)a >> TABLE_SHIFT & 7; }
INLINE vec v_lookup(const real *table, vec_index at) {
    return (vec){table[at[0]], table[at[1]], table[at[2]], table[at[3]]};
}
INLINE vec v_zip_lo(vec a, vec b) { return (vec){a[0], b[0], a[1], b[1]}; }
INLINE vec v_zip_hi(vec a, vec b) { return (vec){a[2], b[2], a[3], b[3]}; }
#else
INLINE vec v_zip_lo(vec a, vec b) { return (vec){a[0], b[0]}; }
INLINE vec v_zip_hi(vec a, vec b) { return (vec){a[1], b[1]}; }
#endif

#include "../body/body.h"
