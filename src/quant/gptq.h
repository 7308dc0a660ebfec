// GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one by one and the error of each is spread over
// the columns still to come, along the inverse Hessian of the inputs.
#pragma once

#include "quant/quantized_linear.h"
#include "torch/libtorch.h"

namespace spear {

/// `hessian` [in, in] with damping on its diagonal, float64. Throws Error(failed) if it is not positive definite.
torch::Tensor damped(const torch::Tensor& hessian, double damping);

/// Columns in order of falling diagonal. weight: [out, in] float32; hessian: [in, in] float64, damped, E[x xᵀ] of the
/// inputs that the quantized network really sees; `grid` gives scales and zeros.
QuantizedLinear quantize_gptq(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& grid);

/// One sweep of cyclic coordinate descent on tr((W − Ŵ) H (W − Ŵ)ᵀ) over the codes, in natural column order: every code
/// is set to the best one given all others. The objective never rises.
void descend_codes(const torch::Tensor& weight, const torch::Tensor& hessian, QuantizedLinear& quantized);

/// Weights that make up for errors upstream: W + (α W D + ρ R)(H + λI)⁻¹ with D = E[(x_reference − x) xᵀ] [in, in] and
/// R = E[(h_reference − h) xᵀ] [out, in] (may be undefined: zero). α = ρ = 1 is the least-squares answer.
/// `solver`: the damped H = E[x xᵀ].
torch::Tensor absorb_error(const torch::Tensor& weight, const torch::Tensor& solver, const torch::Tensor& input_error,
                           double alpha, const torch::Tensor& residual, double rho);

/// Scales that fit best with the codes fixed: s = wᵀHq / qᵀHq per row. Per channel only.
torch::Tensor refit_row_scales(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& quantized);

}  // namespace spear
