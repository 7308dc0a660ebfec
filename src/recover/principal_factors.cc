#include "recover/principal_factors.h"

#include <map>

namespace spear {
namespace {

constexpr double kRidge = 1e-6;  ///< of the mean diagonal of M: a rank that never fires must not stop the factorization

/// E[z zᵀ] of each site's compensator, float64, by the ModuleId of its first member.
std::map<int, torch::Tensor> moments_of_z(TorchModel& model, const std::vector<CompensatorSite>& sites, const torch::Tensor& tokens) {
  std::map<int, torch::Tensor> out;
  for (const auto& site : sites) out[site.members.front().index];
  model.on_linear = [&](ModuleId id, const torch::Tensor& x, torch::Tensor&) {
    const auto found = out.find(id.index);
    const auto& compensator = model.linear(id).compensator;
    if (found == out.end() || !compensator) return;
    const auto a = compensator->a.narrow(0, 0, compensator->rank());
    const auto z = torch::matmul(x.to(torch::kFloat32), a.t()).to(torch::kFloat64);
    found->second = torch::matmul(z.t(), z) / static_cast<double>(z.size(0));
  };
  model.hidden(tokens);
  model.on_linear = nullptr;
  return out;
}

}  // namespace

ModelQuantization principal_factors(TorchModel& model, const std::vector<CompensatorSite>& sites, const torch::Tensor& tokens) {
  torch::NoGradGuard no_grad;
  const auto moments = moments_of_z(model, sites, tokens);
  ModelQuantization out;
  for (const auto& site : sites) {
    const auto& first = *model.linear(site.members.front()).compensator;
    std::vector<torch::Tensor> stacked;
    for (const ModuleId id : site.members) stacked.push_back(model.linear(id).compensator->b);
    const auto b = torch::cat(stacked, 0).to(torch::kFloat64);
    const auto a = first.a.narrow(0, 0, first.rank()).to(torch::kFloat64);
    const auto& m = moments.at(site.members.front().index);
    const auto ridge = kRidge * m.diagonal().mean().clamp_min(1e-30) * torch::eye(m.size(0), m.options());
    const auto lower = torch::linalg_cholesky(m + ridge);
    const auto [u, s, vt] = torch::linalg_svd(torch::matmul(b, lower), /*full_matrices=*/false);
    const auto root = s.sqrt();
    ChainFactors factors;
    // √S Vᵀ L⁻¹ A, by solving Lᵀ y = V √S.
    const auto left = torch::linalg_solve_triangular(lower.t(), vt.t() * root, /*upper=*/true);
    factors.a = torch::matmul(left.t(), a).to(torch::kFloat32);
    factors.sigma = root.clamp_min(1e-6).to(torch::kFloat32);
    const auto scaled = (u * root).to(torch::kFloat32);
    std::int64_t row = 0;
    for (const auto& part : stacked) {
      factors.b.push_back(scaled.narrow(0, row, part.size(0)).contiguous());
      row += part.size(0);
    }
    const auto host = s.to(torch::kCPU).contiguous();
    out.factors.push_back(std::move(factors));
    out.energies.push_back(s.square().sum().item<double>());
    out.singular_values.emplace_back(host.data_ptr<double>(), host.data_ptr<double>() + host.numel());
  }
  return out;
}

}  // namespace spear
