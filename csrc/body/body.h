/* All that is compiled once per instruction set and element type. The file that includes this has defined vec, VL,
 * TILE_ROWS, KERNELS and the operations v_*. */
#include <string.h>

#include "math.h"

#include "gemm.h"

#include "pointwise.h"

#include "layer.h"

#include "forward.h"

#include "reverse.h"

#include "parts.h"

extern const frnn_kernels KERNELS;
const frnn_kernels KERNELS = {
    .packed_size = forward_packed_size,
    .forward_size = forward_size,
    .backward_size = reverse_size,
    .pack = pack_work,
    .forward = forward_work,
    .backward = backward_work,
    .evaluate = evaluate,
    .product_size = product_size,
    .product = product,
    .fma_loop = fma_loop,
    .read_loop = read_loop,
};
