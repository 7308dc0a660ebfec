#include "quant/whitened_factors.h"

#include <algorithm>

namespace spear {
namespace {

constexpr double kResidual = 1e-5;
constexpr std::int64_t kMoreColumns = 8;  ///< of a Krylov block than pairs wanted

Eigenpairs all_eigenpairs(const torch::Tensor& matrix) {
  const auto [values, vectors] = torch::linalg_eigh(matrix);
  return {values.flip(0), vectors.flip(1)};
}

}  // namespace

Eigenpairs leading_eigenpairs(const torch::Tensor& matrix, std::int64_t count) {
  const std::int64_t n = matrix.size(0), block = count + kMoreColumns;
  if (n < 8 * block) return all_eigenpairs(matrix);
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(n));
  auto next = std::get<0>(torch::linalg_qr(torch::randn({n, block}, generator, torch::kFloat64).to(matrix.device())));
  auto basis = next, image = torch::matmul(matrix, next);
  while (basis.size(1) <= n / 2) {
    const auto ritz = all_eigenpairs(torch::matmul(basis.t(), image));
    const auto values = ritz.values.narrow(0, 0, count), rotation = ritz.vectors.narrow(1, 0, count);
    const auto vectors = torch::matmul(basis, rotation);
    const auto residual = (torch::matmul(image, rotation) - vectors * values).norm(2, 0).max();
    if (residual.item<double>() <= kResidual * values[0].item<double>()) return {values, vectors};
    next = image.narrow(1, image.size(1) - block, block);
    for (int pass = 0; pass < 2; ++pass) next = std::get<0>(torch::linalg_qr(next - torch::matmul(basis, torch::matmul(basis.t(), next))));
    basis = torch::cat({basis, next}, 1);
    image = torch::cat({image, torch::matmul(matrix, next)}, 1);
  }
  return all_eigenpairs(matrix);
}

WhitenedFactors whitened_factors(const torch::Tensor& error, const torch::Tensor& moment, std::int64_t rank, Whitening whitening,
                                 std::int64_t spectrum) {
  torch::NoGradGuard no_grad;
  const bool exact = whitening == Whitening::exact;
  const auto s = exact ? std::get<0>(torch::linalg_cholesky_ex(moment)) : moment.diagonal().sqrt();
  // Products in float32, the moments' own precision; the decomposition in float64.
  const auto e = error.to(torch::kFloat32), root_moment = s.to(torch::kFloat32);
  const auto m = (exact ? torch::matmul(e, root_moment) : e * root_moment).to(torch::kFloat64);  // [out, in]
  const std::int64_t all = std::min(m.size(0), m.size(1));
  rank = std::min(rank, all);
  // Eigenvectors of the smaller Gram matrix: cheaper than an SVD, and only the leading directions are needed.
  const bool tall = m.size(0) > m.size(1);
  const auto gram = tall ? torch::matmul(m.t(), m) : torch::matmul(m, m.t());
  const auto [values, vectors] = leading_eigenpairs(gram, std::min(std::max(rank, spectrum), all));
  const auto lead = vectors.narrow(1, 0, rank);
  const auto sigma = values.narrow(0, 0, rank).clamp_min(0).sqrt();
  const auto inverse = torch::where(sigma > 0, 1.0 / sigma, torch::zeros_like(sigma));
  const auto u = tall ? torch::matmul(m, lead) * inverse : lead;                         // [out, rank]
  const auto vt = tall ? lead.t() : torch::matmul(u.t(), m) * inverse.unsqueeze(1);      // [rank, in]
  const auto root = sigma.sqrt();
  const auto unwhitened = exact ? torch::linalg_solve_triangular(s, vt, /*upper=*/false, /*left=*/false) : vt / s;
  return {(root.unsqueeze(1) * unwhitened).to(torch::kFloat32), (u * root).to(torch::kFloat32), values.clamp_min(0).sqrt(),
          gram.diagonal().sum().item<double>()};
}

}  // namespace spear
