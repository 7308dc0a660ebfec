#include "compensator/compensator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "tensor/dtype.h"

namespace spear {
namespace {

void require_size(const char* what, std::size_t found, std::int64_t expected) {
  if (static_cast<std::int64_t>(found) != expected) {
    throw bad_input(fmt::format("compensator {} has {} elements, expected {}", what, found, expected));
  }
}

void require_finite(const char* what, std::span<const std::uint16_t> bits, float (*to_float)(std::uint16_t)) {
  if (!std::all_of(bits.begin(), bits.end(), [&](std::uint16_t v) { return std::isfinite(to_float(v)); })) {
    throw bad_input(fmt::format("compensator {} has a value that is not finite", what));
  }
}

}  // namespace

std::size_t compensators_at(double density, std::size_t count) {
  return static_cast<std::size_t>(std::ceil(std::clamp(density, 0.0, 1.0) * static_cast<double>(count) - 1e-9));
}

void Compensator::validate() const {
  if (!a || rank < 1 || gate_rows < 0 || a->rows != rank + gate_rows) {
    throw bad_input(fmt::format("compensator of rank {} + {} gate rows does not fit its A of {} rows", rank, gate_rows,
                                a ? a->rows : 0));
  }
  require_size("A", a->values.size(), a->rows * a->cols);
  require_size("A scales", a->scales.size(), a->rows);
  require_size("B", b.size(), out_features * rank);
  require_size("B scales", b_scales.size(), rank);
  require_size("gate W1", gate.w1.size(), gate.hidden * a->rows);
  require_size("gate b1", gate.b1.size(), gate.hidden);
  require_size("gate W2", gate.w2.size(), gate.hidden * rank);
  require_size("gate b2", gate.b2.size(), gate.hidden > 0 ? rank : 0);
  require_finite("A scales", a->scales, f16_to_f32);
  require_finite("B scales", b_scales, f16_to_f32);
  for (const auto* part : {&gate.w1, &gate.b1, &gate.w2, &gate.b2}) require_finite("gate", *part, bf16_to_f32);
}

std::int64_t compensator_bytes(std::span<const Compensator* const> compensators) {
  std::set<const CompensatorInput*> counted;
  std::int64_t bytes = 0;
  for (const Compensator* compensator : compensators) {
    bytes += compensator->own_bytes();
    if (counted.insert(compensator->a.get()).second) bytes += compensator->a->storage_bytes();
  }
  return bytes;
}

void project(const CompensatorInput& a, std::span<const float> x, std::span<float> z) {
  for (std::int64_t row = 0; row < a.rows; ++row) {
    float sum = 0;
    const std::int8_t* values = a.values.data() + row * a.cols;
    for (std::int64_t col = 0; col < a.cols; ++col) sum += static_cast<float>(values[col]) * x[static_cast<std::size_t>(col)];
    z[static_cast<std::size_t>(row)] = sum * f16_to_f32(a.scales[static_cast<std::size_t>(row)]);
  }
}

void gate_values(const Compensator& compensator, std::span<const float> z_all, std::span<float> g) {
  const CompensatorGate& gate = compensator.gate;
  const auto rank = static_cast<std::size_t>(compensator.rank);
  const auto hidden = static_cast<std::size_t>(gate.hidden);
  std::fill_n(g.begin(), rank, 1.0F);
  if (hidden == 0) return;
  const std::size_t inputs = rank + static_cast<std::size_t>(compensator.gate_rows);
  std::vector<float> pre(rank);
  for (std::size_t r = 0; r < rank; ++r) pre[r] = bf16_to_f32(gate.b2[r]);
  for (std::size_t h = 0; h < hidden; ++h) {
    float sum = bf16_to_f32(gate.b1[h]);
    for (std::size_t i = 0; i < inputs; ++i) sum += bf16_to_f32(gate.w1[h * inputs + i]) * z_all[i];
    const float activated = sum / (1.0F + std::exp(-sum));
    for (std::size_t r = 0; r < rank; ++r) pre[r] += bf16_to_f32(gate.w2[r * hidden + h]) * activated;
  }
  for (std::size_t r = 0; r < rank; ++r) g[r] = 1.0F + std::tanh(pre[r]);
}

void add_correction(const Compensator& compensator, std::span<const float> z_all, std::span<float> y) {
  const auto rank = static_cast<std::size_t>(compensator.rank);
  std::vector<float> weighted(rank);
  gate_values(compensator, z_all, weighted);
  for (std::size_t r = 0; r < rank; ++r) weighted[r] *= z_all[r] * f16_to_f32(compensator.b_scales[r]);
  for (std::size_t out = 0; out < static_cast<std::size_t>(compensator.out_features); ++out) {
    float sum = 0;
    for (std::size_t r = 0; r < rank; ++r) sum += static_cast<float>(compensator.b[out * rank + r]) * weighted[r];
    y[out] += sum;
  }
}

void quantize_rows_int8(std::span<const float> values, std::int64_t rows, std::int64_t cols, std::vector<std::int8_t>& out,
                        std::vector<std::uint16_t>& scales) {
  out.assign(static_cast<std::size_t>(rows * cols), 0);
  scales.assign(static_cast<std::size_t>(rows), 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto source = values.subspan(static_cast<std::size_t>(row * cols), static_cast<std::size_t>(cols));
    float largest = 0;
    for (const float v : source) largest = std::max(largest, std::fabs(v));
    const std::uint16_t scale = f32_to_f16(largest / 127.0F);
    const float step = f16_to_f32(scale);
    scales[static_cast<std::size_t>(row)] = scale;
    if (step == 0) continue;
    for (std::int64_t col = 0; col < cols; ++col) {
      const float q = std::nearbyint(source[static_cast<std::size_t>(col)] / step);
      out[static_cast<std::size_t>(row * cols + col)] = static_cast<std::int8_t>(std::clamp(q, -127.0F, 127.0F));
    }
  }
}

}  // namespace spear
