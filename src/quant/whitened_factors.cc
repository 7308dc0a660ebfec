#include "quant/whitened_factors.h"

#include <algorithm>

namespace spear {
namespace {

constexpr double kDamping = 0.01;  ///< of the moment's mean diagonal (LRC)

}  // namespace

WhitenedFactors whitened_factors(const torch::Tensor& error, const torch::Tensor& moment, std::int64_t rank, Whitening whitening) {
  torch::NoGradGuard no_grad;
  const auto h = moment.to(torch::kFloat64);
  const auto damped = h + kDamping * h.diagonal().mean().clamp_min(1e-12) * torch::eye(h.size(0), h.options());
  const bool exact = whitening == Whitening::exact;
  const auto s = exact ? std::get<0>(torch::linalg_cholesky_ex(damped)) : damped.diagonal().sqrt();
  // Products in float32, the moments' own precision; the decomposition in float64.
  const auto e = error.to(torch::kFloat32), root_moment = s.to(torch::kFloat32);
  const auto m = (exact ? torch::matmul(e, root_moment) : e * root_moment).to(torch::kFloat64);  // [out, in]
  rank = std::min({rank, m.size(0), m.size(1)});
  // Eigenvectors of the smaller Gram matrix: cheaper than an SVD, and only the leading directions are needed.
  const bool tall = m.size(0) > m.size(1);
  const auto [values, vectors] = torch::linalg_eigh(tall ? torch::matmul(m.t(), m) : torch::matmul(m, m.t()));
  const auto lead = vectors.flip(1).narrow(1, 0, rank);
  const auto sigma = values.flip(0).narrow(0, 0, rank).clamp_min(0).sqrt();
  const auto inverse = torch::where(sigma > 0, 1.0 / sigma, torch::zeros_like(sigma));
  const auto u = tall ? torch::matmul(m, lead) * inverse : lead;                         // [out, rank]
  const auto vt = tall ? lead.t() : torch::matmul(u.t(), m) * inverse.unsqueeze(1);      // [rank, in]
  const auto root = sigma.sqrt();
  const auto unwhitened = exact ? torch::linalg_solve_triangular(s, vt, /*upper=*/false, /*left=*/false) : vt / s;
  return {(root.unsqueeze(1) * unwhitened).to(torch::kFloat32), (u * root).to(torch::kFloat32), values.flip(0).clamp_min(0).sqrt()};
}

}  // namespace spear
