// aᵀ b over many rows: what the moments of the quantizer are made of. On a CPU with bfloat16 instructions oneDNN computes it,
// because torch's own operator would round its float32 sums; elsewhere, and without oneDNN, torch does, in float32.
#pragma once

#include "torch/libtorch.h"

namespace spear {

/// Whether this build has oneDNN's bfloat16 kernels, and this CPU instructions for them.
bool has_bf16_kernels();

/// a: [n, d1], b: [n, d2], any floating type, one device -> aᵀ b: [d1, d2], float32 sums. If b is bfloat16 and there are
/// kernels for it, a is rounded to bfloat16 too: of a moment of n tokens that is noise of 2⁻⁹ / √n, far below its damping.
torch::Tensor transposed_product(const torch::Tensor& a, const torch::Tensor& b);

}  // namespace spear
