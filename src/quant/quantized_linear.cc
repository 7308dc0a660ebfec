#include "quant/quantized_linear.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

constexpr double kSmallestScale = 0x1p-24;  ///< smallest f16 above zero: all-zero rows keep a scale that is not zero

torch::Tensor f16_rounded(const torch::Tensor& tensor) { return tensor.to(torch::kFloat16).to(torch::kFloat32); }

/// [out, in] -> [out, groups, group_size]; groups need not divide the width: the last one is padded with zeros.
torch::Tensor grouped(const torch::Tensor& weight, const W4Scheme& scheme) {
  const std::int64_t out = weight.size(0), in = weight.size(1);
  if (scheme.group_size == 0) return weight.unsqueeze(1);
  const std::int64_t groups = (in + scheme.group_size - 1) / scheme.group_size;
  return torch::constant_pad_nd(weight, {0, groups * scheme.group_size - in}).view({out, groups, scheme.group_size});
}

struct Grid {
  torch::Tensor scales, zeros;  ///< [out, groups]
};

/// Symmetric grid whose code -8 stands at `shrink` times the weight of largest magnitude, whatever that weight's sign.
Grid signed_grid_for(const torch::Tensor& groups, double shrink) {
  const auto largest = groups.gather(-1, groups.abs().argmax(-1, true)).squeeze(-1);
  const auto scales = f16_rounded(largest * (shrink / -8.0));
  return {torch::where(scales == 0, torch::full_like(scales, kSmallestScale), scales), torch::full_like(scales, 8.0)};
}

/// The grid whose range is `shrink` times that of the weights.
Grid grid_for(const torch::Tensor& groups, const W4Scheme& scheme, double shrink) {
  Grid grid;
  if (scheme.symmetric) {
    grid.scales = f16_rounded((groups.abs().amax(-1) * (shrink / 7.0)).clamp_min(kSmallestScale));
    grid.zeros = torch::full_like(grid.scales, 8.0);
  } else {
    const auto low = groups.amin(-1).clamp_max(0) * shrink, high = groups.amax(-1).clamp_min(0) * shrink;
    grid.scales = f16_rounded(((high - low) / 15.0).clamp_min(kSmallestScale));
    grid.zeros = torch::round(-low / grid.scales).clamp(0, 15);
  }
  return grid;
}

bool same_groups(const torch::Tensor& a, const torch::Tensor& b) {
  return a.defined() == b.defined() && (!a.defined() || torch::equal(a, b));
}

}  // namespace

torch::Tensor expand_groups(const torch::Tensor& per_group, std::int64_t in_features, const W4Scheme& scheme,
                            const torch::Tensor& group_index) {
  if (group_index.defined()) return per_group.index_select(1, group_index);
  if (scheme.group_size == 0) return per_group;  // broadcasts over the row
  return per_group.repeat_interleave(scheme.group_size, 1).narrow(1, 0, in_features);
}

torch::Tensor QuantizedLinear::dequantize() const {
  if (values.defined()) return values;
  const std::int64_t in = codes.size(1);
  return (codes - expand_groups(zeros, in, scheme, group_index)) * expand_groups(scales, in, scheme, group_index);
}

W4Matrix QuantizedLinear::pack() const {
  if (values.defined()) throw failed("a linear that is not in 4 bit has no codes to pack");
  const auto bytes = [](const torch::Tensor& t) { return t.detach().to(torch::kCPU, torch::kUInt8).contiguous(); };
  const auto span = [](const torch::Tensor& t) {
    return std::span<const std::uint8_t>(t.data_ptr<std::uint8_t>(), static_cast<std::size_t>(t.numel()));
  };
  const auto c = bytes(codes), z = bytes(zeros);
  W4Matrix matrix = pack_w4(codes.size(0), codes.size(1), scheme, span(c), f16_bits(scales),
                            scheme.symmetric ? std::span<const std::uint8_t>{} : span(z));
  if (group_index.defined()) {
    const auto groups = group_index.to(torch::kCPU, torch::kInt32).contiguous();
    matrix.group_index.assign(groups.data_ptr<std::int32_t>(), groups.data_ptr<std::int32_t>() + groups.numel());
  }
  return matrix;
}

QuantizedLinear QuantizedLinear::rows(std::int64_t first, std::int64_t count) const {
  const auto part = [&](const torch::Tensor& t) { return t.narrow(0, first, count).clone(); };
  if (values.defined()) return {scheme, {}, {}, {}, {}, part(values)};
  return {scheme, part(codes), part(scales), part(zeros), group_index, {}};
}

QuantizedLinear stack_rows(const std::vector<QuantizedLinear>& parts) {
  const QuantizedLinear& first = parts.at(0);
  const bool alike = std::all_of(parts.begin(), parts.end(), [&](const QuantizedLinear& part) {
    return !part.values.defined() && part.scheme == first.scheme && same_groups(part.group_index, first.group_index);
  });
  if (!alike) {
    std::vector<torch::Tensor> values;
    for (const auto& part : parts) values.push_back(part.dequantize());
    return {first.scheme, {}, {}, {}, {}, torch::cat(values, 0)};
  }
  std::vector<torch::Tensor> codes, scales, zeros;
  for (const auto& part : parts) {
    codes.push_back(part.codes);
    scales.push_back(part.scales);
    zeros.push_back(part.zeros);
  }
  return {first.scheme, torch::cat(codes, 0), torch::cat(scales, 0), torch::cat(zeros, 0), first.group_index, {}};
}

QuantizedLinear unpack(const LinearWeight& weight, torch::Device device) {
  if (const auto* packed = std::get_if<W4Matrix>(&weight)) return unpack(*packed, device);
  QuantizedLinear q;
  q.values = to_torch(weight).to(device);
  return q;
}

QuantizedLinear unpack(const W4Matrix& matrix, torch::Device device) {
  QuantizedLinear q;
  q.scheme = matrix.scheme;
  auto codes = torch::empty({matrix.rows, matrix.cols}, torch::kUInt8);
  auto* out = codes.data_ptr<std::uint8_t>();
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    for (std::int64_t col = 0; col < matrix.cols; ++col) *out++ = static_cast<std::uint8_t>(matrix.code(row, col));
  }
  auto scales = torch::empty({matrix.rows, matrix.groups()}, torch::kFloat32);
  auto zeros = torch::empty_like(scales);
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
      scales.data_ptr<float>()[row * matrix.groups() + group] = matrix.scale(row, group);
      zeros.data_ptr<float>()[row * matrix.groups() + group] = static_cast<float>(matrix.zero(row, group));
    }
  }
  q.codes = codes.to(device);
  q.scales = scales.to(device);
  q.zeros = zeros.to(device);
  if (!matrix.group_index.empty()) {
    q.group_index = torch::tensor(std::vector<std::int64_t>(matrix.group_index.begin(), matrix.group_index.end()),
                                  torch::kInt64).to(device);
  }
  return q;
}

QuantizedLinear round_to_grid(const torch::Tensor& weight, const W4Scheme& scheme, torch::Tensor scales, torch::Tensor zeros) {
  const std::int64_t in = weight.size(1);
  auto codes = torch::round(weight / expand_groups(scales, in, scheme) + expand_groups(zeros, in, scheme)).clamp_(0, 15);
  return {scheme, codes.to(torch::kUInt8), std::move(scales), std::move(zeros)};
}

QuantizedLinear quantize_rtn(const torch::Tensor& weight, const W4Scheme& scheme) {
  const Grid grid = grid_for(grouped(weight, scheme), scheme, 1.0);
  return round_to_grid(weight, scheme, grid.scales, grid.zeros);
}

namespace {

constexpr std::int64_t kClipElements = 1 << 18;  ///< at a time: temporaries of a candidate stay in the cache

QuantizedLinear clip_rows(const torch::Tensor& weight, const W4Scheme& scheme, const torch::Tensor& importance) {
  const auto groups = grouped(weight, scheme);
  const auto weights = grouped(importance.to(torch::kFloat32).unsqueeze(0), scheme);  // [1, groups, size]
  torch::Tensor best_error;
  Grid best;
  const auto consider = [&](const Grid& grid) {
    const auto s = grid.scales.unsqueeze(-1), z = grid.zeros.unsqueeze(-1);
    const auto error = ((((torch::round(groups / s + z).clamp(0, 15) - z) * s - groups).square()) * weights).sum(-1);
    if (!best_error.defined()) {
      best_error = error;
      best = grid;
      return;
    }
    const auto better = error < best_error;
    best_error = torch::where(better, error, best_error);
    best.scales = torch::where(better, grid.scales, best.scales);
    best.zeros = torch::where(better, grid.zeros, best.zeros);
  };
  consider(grid_for(groups, scheme, 1.0));  // never worse than round to nearest
  if (scheme.symmetric) {
    for (int step = 1; step <= 3; ++step) consider(grid_for(groups, scheme, 1.0 - 0.1 * step));
    for (int step = 0; step < 16; ++step) consider(signed_grid_for(groups, 1.04 - 0.036 * step));
  } else {
    for (int step = 1; step <= 24; ++step) consider(grid_for(groups, scheme, 1.0 - 0.025 * step));
  }
  return round_to_grid(weight, scheme, best.scales, best.zeros);
}

}  // namespace

QuantizedLinear quantize_clip(const torch::Tensor& weight, const W4Scheme& scheme, const torch::Tensor& importance) {
  const std::int64_t rows = weight.size(0), step = std::max<std::int64_t>(1, kClipElements / std::max<std::int64_t>(1, weight.size(1)));
  if (!weight.device().is_cpu() || rows <= step) return clip_rows(weight, scheme, importance);
  std::vector<QuantizedLinear> parts;
  for (std::int64_t row = 0; row < rows; row += step) {
    parts.push_back(clip_rows(weight.narrow(0, row, std::min(step, rows - row)), scheme, importance));
  }
  return stack_rows(parts);
}

}  // namespace spear
