// The low-rank part of a quantization error that matters most to a module's output.
#pragma once

#include "torch/libtorch.h"

namespace spear {

enum class Whitening { exact, diagonal };

/// The leading part of an error E [out, in] under inputs with second moment H: E ≈ B A with B = U √Σ, A = √Σ Vᵀ S⁻¹,
/// where U Σ Vᵀ = SVD(E S); S is the Cholesky factor of H (exact) or diag(√H_ii) (QERA, arXiv 2410.06040).
struct WhitenedFactors {
  torch::Tensor a;                ///< [rank, in] float32
  torch::Tensor b;                ///< [out, rank] float32
  torch::Tensor singular_values;  ///< [min(out, in)] float64, falling, of E S: their squares are output error
};

/// error: [out, in], moment: [in, in]; `rank` is cut to min(out, in).
WhitenedFactors whitened_factors(const torch::Tensor& error, const torch::Tensor& moment, std::int64_t rank, Whitening whitening);

}  // namespace spear
