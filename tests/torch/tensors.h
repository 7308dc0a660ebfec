// What the tests of the offline plane share: float64 comparisons of tensors, seeded random tensors.
#pragma once

#include <limits>
#include <span>

#include "ops/random_model.h"
#include "torch/libtorch.h"

namespace spear::testing {

/// ‖a − b‖ / ‖b‖ in float64; infinite when anything is NaN or the shapes differ.
inline double distance(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  const auto x = a.detach().to(torch::kFloat64), y = b.detach().to(torch::kFloat64);
  const double value = ((x - y).norm() / y.norm().clamp_min(1e-300)).item<double>();
  return std::isnan(value) ? std::numeric_limits<double>::infinity() : value;
}

/// Standard normal float32, the same on every machine.
inline torch::Tensor random_tensor(std::vector<std::int64_t> shape, std::uint64_t seed, double scale = 1.0) {
  std::int64_t count = 1;
  for (const auto dim : shape) count *= dim;
  const auto values = random_floats(count, seed, scale);
  return torch::from_blob(const_cast<float*>(values.data()), shape, torch::kFloat32).clone();
}

inline torch::Tensor as_tensor(std::span<const float> values, std::vector<std::int64_t> shape) {
  return torch::from_blob(const_cast<float*>(values.data()), shape, torch::kFloat32).clone();
}

}  // namespace spear::testing
