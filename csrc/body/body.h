/* All that is compiled once per instruction set and element type. The file that includes this has defined vec, VL,
 * TILE_SUMS, KERNELS and the operations v_*. */
#include <string.h>

#include "../kernels.h"

#include "math.h"

#include "gemm.h"

#include "pointwise.h"

#include "layer.h"

#include "pack.h"

#include "rows.h"

#include "forward.h"

#include "reverse.h"

#include "shards.h"

#include "context.h"

#include "parts.h"

extern const frnn_kernels KERNELS;
const frnn_kernels KERNELS = {
    .shape = shape_of,
    .recurrent = {{forward_packed_size, forward_pack, forward_workspace_size, forward_work},
                  {reverse_packed_size, reverse_pack, reverse_workspace_size, reverse_work}},
    .context = {{context_packed_size, context_pack, context_workspace_size, context_work},
                {context_reverse_packed_size, context_reverse_pack, context_reverse_workspace_size,
                 context_reverse_work}},
    .chunk_begin = span_begin,
    .evaluate = evaluate,
    .product_size = product_size,
    .product = product,
    .fma_loop = fma_loop,
    .read_loop = read_loop,
};
