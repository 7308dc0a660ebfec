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
  torch::Tensor singular_values;  ///< float64, falling, of E S: their squares are output error
  double energy = 0;              ///< sum of the squares of all min(out, in) singular values
};

/// error: [out, in], moment: [in, in] float64, damped (gptq.h); `rank` is cut to min(out, in). Of the singular values there are
/// at least the leading max(rank, spectrum), if E S has as many.
WhitenedFactors whitened_factors(const torch::Tensor& error, const torch::Tensor& moment, std::int64_t rank, Whitening whitening,
                                 std::int64_t spectrum = 0);

struct Eigenpairs {
  torch::Tensor values;   ///< [k] float64, falling
  torch::Tensor vectors;  ///< [n, k]
};
/// At least the leading `count` eigenpairs of a symmetric positive semidefinite matrix [n, n] float64: all of them where n is
/// small, else by a block Krylov space (Golub and Underwood; Musco and Musco, arXiv 1504.05477), grown until the residuals
/// |G v − λ v| are below 1e-5 of the largest eigenvalue. The same on every call.
Eigenpairs leading_eigenpairs(const torch::Tensor& matrix, std::int64_t count);

}  // namespace spear
