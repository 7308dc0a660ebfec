#include "recover/closed_form.h"

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
  const auto e = error.to(torch::kFloat64);
  const auto m = exact ? torch::matmul(e, s) : e * s;  // [out, in]
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
  return {(root.unsqueeze(1) * unwhitened).to(torch::kFloat32), (u * root).to(torch::kFloat32), sigma};
}

CompensatorStart closed_form_start(const CompensatorShape& shape, const std::vector<torch::Tensor>& errors,
                                   const torch::Tensor& moment, Whitening whitening) {
  const std::int64_t rows = shape.rank + shape.gate_rows;
  const auto factors = whitened_factors(torch::cat(errors, 0), moment, rows, whitening);
  CompensatorStart start;
  start.shape = shape;
  start.a = torch::constant_pad_nd(factors.a, {0, 0, 0, rows - factors.a.size(0)});
  const auto b = torch::constant_pad_nd(factors.b, {0, rows - factors.b.size(1)}).narrow(1, 0, shape.rank);
  std::int64_t row = 0;
  for (const auto& error : errors) {
    start.b.push_back(b.narrow(0, row, error.size(0)).contiguous());
    row += error.size(0);
  }
  const auto a = start.a.to(torch::kFloat64);
  start.sigma = (torch::matmul(a, moment.to(torch::kFloat64)) * a).sum(1).clamp_min(1e-12).sqrt().to(torch::kFloat32);
  return start;
}

}  // namespace spear
