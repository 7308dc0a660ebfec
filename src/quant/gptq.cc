#include "quant/gptq.h"

#include <fmt/format.h>

#include "base/error.h"

namespace spear {
namespace {

/// Upper Cholesky factor U of (H + λI)⁻¹ = UᵀU, float64.
torch::Tensor inverse_factor(const torch::Tensor& hessian, double damping) {
  const auto mean = hessian.diagonal().mean().item<double>();
  for (double lambda = damping; lambda <= 1e3 * damping; lambda *= 10) {
    const auto damped = hessian + lambda * (mean > 0 ? mean : 1.0) * torch::eye(hessian.size(0), hessian.options());
    const auto lower = std::get<0>(torch::linalg_cholesky_ex(damped));
    const auto inverse = torch::cholesky_inverse(lower);
    if (!inverse.isfinite().all().item<bool>()) continue;
    const auto upper = std::get<0>(torch::linalg_cholesky_ex(inverse)).transpose(0, 1).contiguous();
    if (upper.isfinite().all().item<bool>()) return upper;
  }
  throw failed(fmt::format("the Hessian of {} inputs is not positive definite even with strong damping", hessian.size(0)),
               "gptq", "use more calibration tokens, or --quantizer clip");
}

}  // namespace

GptqResult quantize_gptq(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& grid,
                         const GptqOptions& options) {
  const std::int64_t in = weight.size(1);
  const auto h = hessian.to(torch::kFloat64);
  const auto order = options.act_order ? torch::argsort(h.diagonal(), 0, true) : torch::arange(in, h.options().dtype(torch::kInt64));
  const auto u = inverse_factor(h.index_select(0, order).index_select(1, order), options.damping).to(torch::kFloat32);
  const auto columns = [&](const torch::Tensor& per_group) {
    return expand_groups(per_group, in, grid.scheme).expand_as(weight).index_select(1, order).t().contiguous();
  };
  // Transposed, so that a column is contiguous: [in, out].
  const auto scale = columns(grid.scales), zero = columns(grid.zeros);
  auto w = weight.index_select(1, order).t().contiguous();
  auto codes = torch::empty_like(w), before = torch::empty_like(w);
  for (std::int64_t begin = 0; begin < in; begin += options.block) {
    const std::int64_t count = std::min(options.block, in - begin);
    auto errors = torch::empty({count, w.size(1)}, w.options());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t col = begin + i;
      const auto current = w[col], s = scale[col], z = zero[col];
      before[col].copy_(current);
      auto code = codes[col];
      code.copy_(torch::round(current / s + z).clamp_(0, 15));
      const auto error = (current - (code - z) * s) / u[col][col];
      errors[i].copy_(error);
      if (i + 1 < count) {
        w.narrow(0, col + 1, count - i - 1).addr_(u[col].narrow(0, col + 1, count - i - 1), error, 1, -1);
      }
    }
    if (begin + count < in) {
      const std::int64_t rest = in - begin - count;
      w.narrow(0, begin + count, rest).addmm_(u.narrow(0, begin, count).narrow(1, begin + count, rest).t(), errors, 1, -1);
    }
  }
  const auto back = torch::argsort(order);
  QuantizedLinear out = grid;
  out.codes = codes.t().index_select(1, back).contiguous();
  return {out, before.t().index_select(1, back).contiguous()};
}

torch::Tensor absorb_error(const torch::Tensor& weight, const torch::Tensor& hessian, const torch::Tensor& cross,
                           const torch::Tensor& residual, double damping) {
  const auto h = hessian.to(torch::kFloat64);
  const auto damped = h + damping * h.diagonal().mean() * torch::eye(h.size(0), h.options());
  const auto w = weight.to(torch::kFloat64);
  auto right = torch::matmul(w, cross.to(torch::kFloat64) - h);  // [out, in]
  if (residual.defined()) right += residual.to(torch::kFloat64);
  const auto lower = std::get<0>(torch::linalg_cholesky_ex(damped));
  const auto change = torch::cholesky_solve(right.t().contiguous(), lower).t();
  if (!change.isfinite().all().item<bool>()) {
    throw failed("the Hessian is not positive definite", "gptq", "use more calibration tokens, or --quantizer clip");
  }
  return (w + change).to(weight.scalar_type());
}

torch::Tensor refit_row_scales(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& quantized) {
  const auto h = hessian.to(torch::kFloat64);
  const auto q = (quantized.codes - expand_groups(quantized.zeros, quantized.codes.size(1), quantized.scheme)).to(torch::kFloat64);
  const auto hq = torch::matmul(q, h);
  const auto fit = (weight.to(torch::kFloat64) * hq).sum(1, true) / (q * hq).sum(1, true);
  const auto scales = torch::where(fit.isfinite(), fit, quantized.scales.to(torch::kFloat64));
  return scales.to(torch::kFloat16).to(torch::kFloat32);
}

}  // namespace spear
