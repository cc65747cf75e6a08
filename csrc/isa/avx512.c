/* AVX-512 (F and DQ): 32 registers of 64 bytes. */
#include <immintrin.h>

#include "../body/real.h"

#define KERNELS BY_BITS(frnn_avx512_f32, frnn_avx512_f64)
#define TILE_SUMS 24

#if FRNN_BITS == 32
#define OP(name) _mm512_##name##_ps
typedef __m512 vec;
typedef __mmask16 vec_mask;
#else
#define OP(name) _mm512_##name##_pd
typedef __m512d vec;
typedef __mmask8 vec_mask;
#endif
#define VL ((int)(sizeof(vec) / sizeof(real)))

/* The lanes below n, 0 <= n <= VL. */
INLINE vec_mask lanes(int64_t n) { return (vec_mask)((1u << n) - 1u); }

INLINE vec v_load(const real *p) { return OP(loadu)(p); }
INLINE void v_store(real *p, vec a) { OP(storeu)(p, a); }
/* past the caches; p aligned to a vector */
INLINE void v_stream(real *p, vec a) { OP(stream)(p, a); }
INLINE vec v_load_n(const real *p, int64_t n) { return OP(maskz_loadu)(lanes(n), p); }
INLINE void v_store_n(real *p, vec a, int64_t n) { OP(mask_storeu)(p, lanes(n), a); }
INLINE vec v_set1(real a) { return OP(set1)(a); }

INLINE vec v_add(vec a, vec b) { return OP(add)(a, b); }
INLINE vec v_sub(vec a, vec b) { return OP(sub)(a, b); }
INLINE vec v_mul(vec a, vec b) { return OP(mul)(a, b); }
INLINE vec v_div(vec a, vec b) { return OP(div)(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return OP(fmadd)(a, b, c); }
INLINE vec v_fnma(vec a, vec b, vec c) { return OP(fnmadd)(a, b, c); }

/* b where either is NaN */
INLINE vec v_min(vec a, vec b) { return OP(min)(a, b); }
INLINE vec v_max(vec a, vec b) { return OP(max)(a, b); }
INLINE vec v_abs(vec a) { return OP(andnot)(OP(set1)((real)-0.0), a); }

#if FRNN_BITS == 32
INLINE vec v_copysign(vec a, vec b) { /* bit by bit, the mask's choice of a and b */
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(mask, _mm512_castps_si512(a), _mm512_castps_si512(b), 0xca));
}
INLINE vec v_select_le(vec a, vec b, vec yes, vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), no, yes);
}
/* the last bits of the mantissa where the exponent is */
INLINE vec v_exponent(vec a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), REAL_MANTISSA)); }
/* the place in a table of eight: the three bits from TABLE_SHIFT on, others are not heeded; and what stands there */
typedef __m512i vec_index;
INLINE vec_index v_index(vec a) { return _mm512_srli_epi32(_mm512_castps_si512(a), TABLE_SHIFT); }
INLINE vec v_lookup(const real *table, vec_index at) {
    return _mm512_permutexvar_ps(at, _mm512_broadcast_f32x8(_mm256_loadu_ps(table)));
}
INLINE vec v_zip_lo(vec a, vec b) {
    const __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, index, b);
}
INLINE vec v_zip_hi(vec a, vec b) {
    const __m512i index = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, index, b);
}
#else
INLINE vec v_copysign(vec a, vec b) {
    const __m512i mask = _mm512_set1_epi64(0x7fffffffffffffff);
    return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(mask, _mm512_castpd_si512(a), _mm512_castpd_si512(b), 0xca));
}
INLINE vec v_select_le(vec a, vec b, vec yes, vec no) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LE_OQ), no, yes);
}
INLINE vec v_exponent(vec a) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(a), REAL_MANTISSA)); }
INLINE vec v_zip_lo(vec a, vec b) { return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b); }
INLINE vec v_zip_hi(vec a, vec b) {
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
}
#endif

#include "../body/body.h"
