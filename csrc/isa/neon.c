/* AArch64 Advanced SIMD (NEON): 32 registers of 16 bytes. */
#include <arm_neon.h>

#include "../body/real.h"

#define KERNELS BY_BITS(frnn_neon_f32, frnn_neon_f64)
#define TILE_SUMS 24

#if FRNN_BITS == 32
#define OP(name) name##_f32
#define BITS(name) name##_u32
#define AS_BITS vreinterpretq_u32_f32
#define AS_REAL vreinterpretq_f32_u32
typedef float32x4_t vec;
typedef uint32x4_t vec_bits;
#else
#define OP(name) name##_f64
#define BITS(name) name##_u64
#define AS_BITS vreinterpretq_u64_f64
#define AS_REAL vreinterpretq_f64_u64
typedef float64x2_t vec;
typedef uint64x2_t vec_bits;
#endif
#define VL ((int)(sizeof(vec) / sizeof(real)))

INLINE vec v_load(const real *p) { return OP(vld1q)(p); }
INLINE void v_store(real *p, vec a) { OP(vst1q)(p, a); }
INLINE void v_stream(real *p, vec a) { v_store(p, a); }
INLINE vec v_load_n(const real *p, int64_t n) {
    real lane[VL] = {0};
    for (int i = 0; i < n; ++i) lane[i] = p[i];
    return v_load(lane);
}
INLINE void v_store_n(real *p, vec a, int64_t n) {
    real lane[VL];
    v_store(lane, a);
    for (int i = 0; i < n; ++i) p[i] = lane[i];
}
INLINE vec v_set1(real a) { return OP(vdupq_n)(a); }

INLINE vec v_add(vec a, vec b) { return OP(vaddq)(a, b); }
INLINE vec v_sub(vec a, vec b) { return OP(vsubq)(a, b); }
INLINE vec v_mul(vec a, vec b) { return OP(vmulq)(a, b); }
INLINE vec v_div(vec a, vec b) { return OP(vdivq)(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return OP(vfmaq)(c, a, b); }
INLINE vec v_fnma(vec a, vec b, vec c) { return OP(vfmsq)(c, a, b); }

INLINE vec choose(vec_bits mask, vec yes, vec no) { return OP(vbslq)(mask, yes, no); }

/* b where either is NaN */
INLINE vec v_min(vec a, vec b) { return choose(OP(vcltq)(a, b), a, b); }
INLINE vec v_max(vec a, vec b) { return choose(OP(vcgtq)(a, b), a, b); }
INLINE vec v_abs(vec a) { return OP(vabsq)(a); }
INLINE vec v_copysign(vec a, vec b) { return choose(AS_BITS(v_set1((real)-0.0)), b, a); }
INLINE vec v_select_le(vec a, vec b, vec yes, vec no) { return choose(OP(vcleq)(a, b), yes, no); }
INLINE vec v_zip_lo(vec a, vec b) { return OP(vzip1q)(a, b); }
INLINE vec v_zip_hi(vec a, vec b) { return OP(vzip2q)(a, b); }

/* the last bits of the mantissa where the exponent is */
INLINE vec v_exponent(vec a) { return AS_REAL(BITS(vshlq_n)(AS_BITS(a), REAL_MANTISSA)); }

#if FRNN_BITS == 32
/* the place in a table of eight: the three bits from TABLE_SHIFT on; and what stands there, found byte by byte */
typedef uint8x16_t vec_index;
INLINE vec_index v_index(vec a) {
    const uint32x4_t entry = vandq_u32(vshrq_n_u32(AS_BITS(a), TABLE_SHIFT), vdupq_n_u32(7));
    return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), entry, 0x04040404));
}
INLINE vec v_lookup(const real *table, vec_index at) {
    const uint8x16x2_t bytes = {{vreinterpretq_u8_f32(v_load(table)), vreinterpretq_u8_f32(v_load(table + 4))}};
    return vreinterpretq_f32_u8(vqtbl2q_u8(bytes, at));
}
#endif

#include "../body/body.h"
