/* AVX2 and FMA: 16 registers of 32 bytes. */
#include <immintrin.h>

#include "../body/real.h"

#define KERNELS BY_BITS(frnn_avx2_f32, frnn_avx2_f64)
#define TILE_SUMS 12

#if FRNN_BITS == 32
#define OP(name) _mm256_##name##_ps
typedef __m256 vec;
INLINE __m256i lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#else
#define OP(name) _mm256_##name##_pd
typedef __m256d vec;
INLINE __m256i lanes(int64_t n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
#endif
#define VL ((int)(sizeof(vec) / sizeof(real)))

INLINE vec v_load(const real *p) { return OP(loadu)(p); }
INLINE void v_store(real *p, vec a) { OP(storeu)(p, a); }
/* past the caches; p aligned to a vector */
INLINE void v_stream(real *p, vec a) { OP(stream)(p, a); }
INLINE vec v_load_n(const real *p, int64_t n) { return OP(maskload)(p, lanes(n)); }
INLINE void v_store_n(real *p, vec a, int64_t n) { OP(maskstore)(p, lanes(n), a); }
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
INLINE vec v_copysign(vec a, vec b) { return OP(or)(v_abs(a), OP(and)(OP(set1)((real)-0.0), b)); }
INLINE vec v_select_le(vec a, vec b, vec yes, vec no) { return OP(blendv)(no, yes, OP(cmp)(a, b, _CMP_LE_OQ)); }

#if FRNN_BITS == 32
/* the last bits of the mantissa where the exponent is */
INLINE vec v_exponent(vec a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), REAL_MANTISSA)); }
/* the place in a table of eight: the three bits from TABLE_SHIFT on, others are not heeded; and what stands there */
typedef __m256i vec_index;
INLINE vec_index v_index(vec a) { return _mm256_srli_epi32(_mm256_castps_si256(a), TABLE_SHIFT); }
INLINE vec v_lookup(const real *table, vec_index at) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), at); }
INLINE vec v_zip_lo(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
INLINE vec v_zip_hi(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
#else
INLINE vec v_exponent(vec a) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(a), REAL_MANTISSA)); }
INLINE vec v_zip_lo(vec a, vec b) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
}
INLINE vec v_zip_hi(vec a, vec b) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
}
#endif

#include "../body/body.h"
