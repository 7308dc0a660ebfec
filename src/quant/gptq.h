// GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one by one and the error of each is spread over
// the columns still to come, along the inverse Hessian of the inputs.
#pragma once

#include <torch/torch.h>

#include "quant/quantized_linear.h"

namespace spear {

struct GptqOptions {
  bool act_order = true;   ///< columns in order of falling Hessian diagonal
  double damping = 0.01;   ///< times the mean of the diagonal, added to it
  std::int64_t block = 128;
};

struct GptqResult {
  QuantizedLinear quantized;
  torch::Tensor before_rounding;  ///< [out, in]: each weight as it stood just before its own rounding
};

/// weight: [out, in] float32; hessian: [in, in] E[x xᵀ] of the inputs the quantized network really sees; `grid` gives
/// scales and zeros. Damping is raised tenfold until the Cholesky factorization succeeds; Error(failed) after that.
GptqResult quantize_gptq(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& grid,
                         const GptqOptions& options);

/// Weights that best give W x_reference + r from x: W + (W (C − H) + R)(H + λI)⁻¹ with H = E[x xᵀ],
/// C = E[x_reference xᵀ] [in, in] and R = E[r xᵀ] [out, in] (may be undefined: zero). λ = damping × mean of H's diagonal.
torch::Tensor absorb_error(const torch::Tensor& weight, const torch::Tensor& hessian, const torch::Tensor& cross,
                           const torch::Tensor& residual, double damping);

/// Scales that fit best with the codes fixed: s = wᵀHq / qᵀHq per row. Per channel only.
torch::Tensor refit_row_scales(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& quantized);

}  // namespace spear
