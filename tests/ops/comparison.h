// How far a kernel's output is from the float64 reference, in units of what float32 rounding allows.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "ops/ref/ref_ops.h"

namespace spear::testing {

/// Largest |y - reference| / tolerance over all outputs of y = x Wᵀ, where tolerance = ‖x_i‖ ‖w_n‖ eps sqrt(k), the
/// size of k random roundings. A value above 1 is a failure; NaN counts as infinitely far.
inline double linear_error(const RefMatrix& x, const RefMatrix& w, std::span<const float> y, std::int64_t ldy) {
  const auto norm = [](const RefMatrix& m, std::int64_t row) {
    double sum = 0;
    for (std::int64_t j = 0; j < m.cols; ++j) sum += m.at(row, j) * m.at(row, j);
    return std::sqrt(sum);
  };
  const RefMatrix reference = ref::linear(x, w);
  double worst = 0;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t n = 0; n < w.rows; ++n) {
      const double tolerance = norm(x, i) * norm(w, n) * FLT_EPSILON * std::sqrt(static_cast<double>(w.cols)) + FLT_MIN;
      const double error = std::fabs(y[static_cast<std::size_t>(i * ldy + n)] - reference.at(i, n)) / tolerance;
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  }
  return worst;
}

/// ‖y - reference‖ / ‖reference‖; infinite when anything is NaN.
inline double relative_error(std::span<const float> y, std::span<const double> reference) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    difference += (y[i] - reference[i]) * (y[i] - reference[i]);
    size += reference[i] * reference[i];
  }
  const double error = std::sqrt(difference / size);
  return std::isnan(error) || y.size() != reference.size() ? std::numeric_limits<double>::infinity() : error;
}

inline RefMatrix as_matrix(std::span<const float> values, std::int64_t rows, std::int64_t cols) {
  RefMatrix m(rows, cols);
  m.values.assign(values.begin(), values.end());
  return m;
}

}  // namespace spear::testing
