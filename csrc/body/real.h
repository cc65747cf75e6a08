/* The element type of this object: every kernel source is compiled once per instruction set and element type,
 * with FRNN_BITS 32 or 64. */
#ifndef FRNN_REAL_H
#define FRNN_REAL_H

#include <stddef.h>
#include <stdint.h>

#if FRNN_BITS == 32
typedef float real;
typedef int32_t real_int; /* the integer as wide as a real */
#define REAL_MANTISSA 23
#define REAL_BIAS 127
#define BY_BITS(single, twice) single
#elif FRNN_BITS == 64
typedef double real;
typedef int64_t real_int;
#define REAL_MANTISSA 52
#define REAL_BIAS 1023
#define BY_BITS(single, twice) twice
#else
#error "FRNN_BITS is 32 or 64"
#endif

/* A table of eight float32 is entered by the last two bits of an exponent and the first one of its mantissa. */
#define TABLE_SHIFT (REAL_MANTISSA - 1)

#define INLINE static inline __attribute__((always_inline))
/* Called once for much work, and not to take registers from what surrounds the call. */
#define APART static __attribute__((noinline))

/* Before a loop of few turns: unrolled whole and early, so that an array it indexes becomes registers. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* The most vectors that a packed panel holds side by side, and the most rows of a tile. An instruction set says how
 * many sums, TILE_SUMS, fit its registers beside the operands: a tile of so many vectors has as many rows as that
 * allows. */
#define TILE_VECS 4
#define TILE_ROWS 8

#endif
