#include "quant/gptq.h"

#include <fmt/format.h>

#include "base/error.h"

namespace spear {
namespace {

constexpr std::int64_t kBlock = 64;  ///< columns between two updates of all that follow

Error not_positive(std::int64_t inputs) {
  return failed(fmt::format("the Hessian of {} inputs is not positive definite", inputs), "quantize",
                "use more calibration tokens, or --quantizer clip");
}

torch::Tensor cholesky_lower(const torch::Tensor& matrix) {
  const auto [lower, info] = torch::linalg_cholesky_ex(matrix);
  if (info.item<int>() != 0) throw not_positive(matrix.size(0));
  return lower;
}

/// Upper factor U of H⁻¹ = UᵀU for the rows and columns of H in the given order, from one Cholesky: with J the reversal,
/// J H J = L Lᵀ, so H = R Rᵀ with R = J L J upper and U = R⁻¹. Matrices are let go as soon as the next one exists: those of
/// 11,008 inputs take a gigabyte each.
torch::Tensor inverse_factor(const torch::Tensor& hessian, const torch::Tensor& order) {
  const auto reversed = order.flip(0);
  auto factor = cholesky_lower(hessian.index_select(0, reversed).index_select(1, reversed));
  factor = factor.flip({0, 1}).contiguous();
  factor = torch::linalg_solve_triangular(factor, torch::eye(hessian.size(0), hessian.options()), /*upper=*/true);
  if (!factor.isfinite().all().item<bool>()) throw not_positive(hessian.size(0));
  return factor.to(torch::kFloat32);
}

/// Scales or zeros as [in, out], in the given column order.
torch::Tensor by_column(const torch::Tensor& per_group, const QuantizedLinear& grid, std::int64_t out, std::int64_t in) {
  return expand_groups(per_group, in, grid.scheme).expand({out, in}).t().contiguous();
}

torch::Tensor nearest_code(const torch::Tensor& value, const torch::Tensor& scale, const torch::Tensor& zero) {
  return torch::round(value / scale + zero).clamp_(0, 15);
}

}  // namespace

torch::Tensor damped(const torch::Tensor& hessian, double damping) {
  const auto h = hessian.to(torch::kFloat64);
  auto sum = (h + h.t()).mul_(0.5);
  sum.diagonal().add_(damping * h.diagonal().mean().clamp_min(1e-12));
  return sum;
}

QuantizedLinear quantize_gptq(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& grid) {
  const std::int64_t out = weight.size(0), in = weight.size(1);
  const auto order = torch::argsort(hessian.diagonal(), 0, true);
  const auto u = inverse_factor(hessian, order);
  // Transposed, so that a column is contiguous.
  const auto scale = by_column(grid.scales, grid, out, in).index_select(0, order);
  const auto zero = by_column(grid.zeros, grid, out, in).index_select(0, order);
  auto w = weight.t().index_select(0, order).contiguous();
  auto codes = torch::empty(w.sizes(), w.options().dtype(torch::kUInt8));
  for (std::int64_t begin = 0; begin < in; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, in - begin), rest = in - begin - count;
    auto errors = torch::empty({count, out}, w.options());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t col = begin + i;
      const auto code = nearest_code(w[col], scale[col], zero[col]);
      codes[col].copy_(code);
      errors[i].copy_((w[col] - (code - zero[col]) * scale[col]) / u[col][col]);
      if (i + 1 < count) w.narrow(0, col + 1, count - i - 1).addr_(u[col].narrow(0, col + 1, count - i - 1), errors[i], 1, -1);
    }
    if (rest > 0) {
      w.narrow(0, begin + count, rest).addmm_(u.narrow(0, begin, count).narrow(1, begin + count, rest).t(), errors, 1, -1);
    }
  }
  QuantizedLinear result = grid;
  result.codes = codes.index_select(0, torch::argsort(order)).t().contiguous();
  return result;
}

void descend_codes(const torch::Tensor& weight, const torch::Tensor& hessian, QuantizedLinear& quantized) {
  const std::int64_t out = weight.size(0), in = weight.size(1);
  const auto h = hessian.to(torch::kFloat32);
  const auto scale = by_column(quantized.scales, quantized, out, in), zero = by_column(quantized.zeros, quantized, out, in);
  auto codes = quantized.codes.t().contiguous();
  auto value = (codes - zero) * scale;  // float32
  // gradient = H (W − Ŵ)ᵀ, kept up to date within a block at once, for the rest at the block's end.
  auto gradient = torch::matmul(h, weight.t() - value);
  const auto diagonal = h.diagonal();
  for (std::int64_t begin = 0; begin < in; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, in - begin), rest = in - begin - count;
    auto changes = torch::empty({count, out}, value.options());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t col = begin + i;
      const auto code = nearest_code(value[col] + gradient[col] / diagonal[col], scale[col], zero[col]);
      const auto now = (code - zero[col]) * scale[col];
      changes[i].copy_(now - value[col]);
      codes[col].copy_(code);
      value[col].copy_(now);
      gradient.narrow(0, begin, count).addr_(h[col].narrow(0, begin, count), changes[i], 1, -1);
    }
    if (rest > 0) {
      gradient.narrow(0, begin + count, rest).addmm_(h.narrow(0, begin, count).narrow(1, begin + count, rest).t(), changes, 1, -1);
    }
  }
  quantized.codes = codes.t().contiguous();
}

torch::Tensor absorb_error(const torch::Tensor& weight, const torch::Tensor& solver, const torch::Tensor& input_error,
                           double alpha, const torch::Tensor& residual, double rho) {
  auto right = alpha * torch::matmul(weight.to(torch::kFloat32), input_error.to(torch::kFloat32)).to(torch::kFloat64);  // [out, in]
  if (residual.defined()) right += rho * residual.to(torch::kFloat64);
  const auto lower = cholesky_lower(solver);
  const auto change = torch::cholesky_solve(right.t().contiguous(), lower).t();
  if (!change.isfinite().all().item<bool>()) throw not_positive(solver.size(0));
  return (weight.to(torch::kFloat64) + change).to(weight.scalar_type());
}

torch::Tensor refit_row_scales(const torch::Tensor& weight, const torch::Tensor& hessian, const QuantizedLinear& quantized) {
  // In float32: what the product loses is far below the F16 that the scales end in.
  const auto q = (quantized.codes - quantized.zeros).to(torch::kFloat32);
  const auto hq = torch::matmul(q, hessian.to(torch::kFloat32));
  const auto fit = (weight * hq).sum(1, true, torch::kFloat64) / (q * hq).sum(1, true, torch::kFloat64);
  const auto rounded = fit.to(torch::kFloat16).to(torch::kFloat32);
  return torch::where(rounded.isfinite() & (rounded != 0), rounded, quantized.scales);
}

}  // namespace spear
