// A 4-bit weight as tensors, while it is being made; W4Matrix (tensor/w4.h) is what it becomes.
#pragma once

#include "model/weights.h"
#include "torch/libtorch.h"

namespace spear {

/// w = scale * (code - zero) with code in 0..15; symmetric schemes have zero = 8.
struct QuantizedLinear {
  W4Scheme scheme;
  torch::Tensor codes;   ///< [out, in] uint8, 0..15
  torch::Tensor scales;  ///< [out, groups] float32, values that f16 can hold; may be negative
  torch::Tensor zeros;   ///< [out, groups] float32, integers 0..15
  /// [in] int64, W4Matrix::group_index; undefined when groups follow the columns.
  torch::Tensor group_index = {};
  /// [out, in] float32: a linear of another format that stays as it is; it has no codes, scales and zeros.
  torch::Tensor values = {};

  torch::Tensor dequantize() const;  ///< [out, in] float32
  W4Matrix pack() const;  ///< not of one that is only values
  QuantizedLinear rows(std::int64_t first, std::int64_t count) const;  ///< a copy of these output rows
};

/// The rows of all parts (one width), one below the other; as values where parts differ in scheme or order of groups.
QuantizedLinear stack_rows(const std::vector<QuantizedLinear>& parts);

QuantizedLinear unpack(const W4Matrix& matrix, torch::Device device);
/// The same of a packed linear; any other becomes `values`.
QuantizedLinear unpack(const LinearWeight& weight, torch::Device device);

/// [out, groups] -> [out, in]: every column gets its group's value; group_index as in QuantizedLinear.
torch::Tensor expand_groups(const torch::Tensor& per_group, std::int64_t in_features, const W4Scheme& scheme,
                            const torch::Tensor& group_index = {});

/// Codes of `weight` [out, in] under given scales and zeros: clamp(round(w / s + zero), 0, 15).
QuantizedLinear round_to_grid(const torch::Tensor& weight, const W4Scheme& scheme, torch::Tensor scales, torch::Tensor zeros);

/// Round to nearest (design §2): s = max|w| / 7, q = clamp(round(w / s), -8, 7); asymmetric s = (max - min) / 15
/// with 0 inside the range, z = round(-min / s). Scales are rounded to f16 first.
QuantizedLinear quantize_rtn(const torch::Tensor& weight, const W4Scheme& scheme);

/// Scales from a search over clipped ranges that minimizes Σ_j importance_j (w_j - ŵ_j)² per row (or group).
/// Symmetric grids also try negative scales, under which the row's largest weight meets code -8 instead of 7: no byte
/// more, a finer step. importance: [in], mean square of each input (all ones: plain weight error).
QuantizedLinear quantize_clip(const torch::Tensor& weight, const W4Scheme& scheme, const torch::Tensor& importance);

}  // namespace spear
