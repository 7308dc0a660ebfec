// bfloat16 products through oneDNN, for what torch's own operators do badly: a weight is laid out once instead of at every
// call, and a product of bfloat16 operands keeps its float32 accumulator. Built without oneDNN, on a device other than the
// CPU, or on a CPU without bfloat16 kernels, all of it is composed of torch operators: `has_bf16_kernels` tells.
#pragma once

#include <torch/torch.h>

#include <memory>

namespace spear {

/// Whether this build has oneDNN's bfloat16 kernels, and this CPU instructions for them.
bool has_bf16_kernels();

/// A weight matrix in the order that oneDNN wants for a given number of rows of x.
class PackedWeight {
 public:
  /// weight: [out, in], bfloat16 on the CPU; has_bf16_kernels() must hold. The tensor is kept.
  explicit PackedWeight(torch::Tensor weight);
  ~PackedWeight();
  PackedWeight(PackedWeight&&) noexcept;
  PackedWeight& operator=(PackedWeight&&) noexcept;

  /// x: [m, in] bfloat16 -> x weightᵀ: [m, out] in `out_type` (bfloat16 or float32). Laid out anew when m changes.
  torch::Tensor multiply(const torch::Tensor& x, torch::ScalarType out_type);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// a: [n, d1], b: [n, d2], any floating type, one device -> aᵀ b: [d1, d2], float32 sums. If b is bfloat16 and there are
/// kernels for it, a is rounded to bfloat16 too: of a moment of n tokens that is noise of 2⁻⁹ / √n, far below its damping.
torch::Tensor transposed_product(const torch::Tensor& a, const torch::Tensor& b);

}  // namespace spear
