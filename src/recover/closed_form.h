// Stage 1 of calibration: the compensator that fits a module's output error best, by whitened SVD.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "recover/trainable.h"

namespace spear {

enum class Whitening { exact, diagonal };

/// The leading part of an error E [out, in] under inputs with second moment H: E ≈ B A with B = U √Σ, A = √Σ Vᵀ S⁻¹,
/// where U Σ Vᵀ = SVD(E S); S is the Cholesky factor of H (exact) or diag(√H_ii) (QERA, arXiv 2410.06040).
struct WhitenedFactors {
  torch::Tensor a;                ///< [rank, in] float32
  torch::Tensor b;                ///< [out, rank] float32
  torch::Tensor singular_values;  ///< [rank] float64, of E S: their squares are the output error removed
};

/// error: [out, in], moment: [in, in]; `rank` is cut to min(out, in).
WhitenedFactors whitened_factors(const torch::Tensor& error, const torch::Tensor& moment, std::int64_t rank, Whitening whitening);

/// Starting values for one shape: the errors of all its members stacked. `errors` by member: reference − quantized
/// weight [out, in]. Gate rows start at the next singular directions.
CompensatorStart closed_form_start(const CompensatorShape& shape, const std::vector<torch::Tensor>& errors,
                                   const torch::Tensor& moment, Whitening whitening);

}  // namespace spear
