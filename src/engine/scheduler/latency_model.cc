#include "engine/scheduler/latency_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace spear {
namespace {

constexpr double kRate = 0.08;        // of the moving average, once there are enough steps
constexpr double kLargestMove = 0.3;  // of a logarithm: what one step can say at most
constexpr double kLargestLog = 1.4;   // factor 4

}  // namespace

std::size_t LatencyModel::regime(const StepShape& shape) {
  const std::size_t kind = shape.prefill == 0 ? 0 : shape.decodes == 0 ? 1 : 2;
  const auto rows = static_cast<std::uint64_t>(std::max<std::int64_t>(shape.rows(), 1));
  return kind * kSizes + std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(rows)) - 1, kSizes - 1);
}

double LatencyModel::factor(const StepShape& shape) const { return std::exp(log_factor_[regime(shape)]); }

double LatencyModel::seconds(const StepShape& shape) const {
  return table_.milliseconds(shape) * 1e-3 * (learn_ ? factor(shape) : 1.0);
}

void LatencyModel::observe(const StepShape& shape, double seconds) {
  const double expected = table_.milliseconds(shape) * 1e-3;
  if (!learn_ || !(seconds > 0) || !(expected > 0)) return;
  const std::size_t r = regime(shape);
  double& log_factor = log_factor_[r];
  seen_[r] = std::min(seen_[r] + 1, 1000U);
  const double rate = std::max(kRate, 1.0 / (seen_[r] + 1.0));
  const double surprise = std::clamp(std::log(seconds / expected) - log_factor, -kLargestMove, kLargestMove);
  log_factor = std::clamp(log_factor + rate * surprise, -kLargestLog, kLargestLog);
}

}  // namespace spear
