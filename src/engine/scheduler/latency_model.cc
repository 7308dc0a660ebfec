#include "engine/scheduler/latency_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"

namespace spear {
namespace {

constexpr double kRate = 0.08;        // of the moving average, once there are enough steps
constexpr double kLargestMove = 0.3;  // of a logarithm: what one step can say at most
constexpr double kLargestLog = 1.4;   // factor 4
constexpr double kLateShare = 0.01;   // of the steps take longer than seconds_at_most
constexpr double kMarginMove = 0.05;  // of its logarithm, after a late step
constexpr double kSmallestMargin = 0.02;

}  // namespace

LatencyModel::LatencyModel(LatencyTable table, bool learn, double margin) : table_(std::move(table)), learn_(learn) {
  if (!(margin >= 1 && margin <= 100)) throw usage_error("a margin that makes no sense", "margin", "give 1 to 100");
  log_margin_.fill(std::log(margin));
}

std::size_t LatencyModel::regime(const StepShape& shape) {
  const auto rows = static_cast<std::uint64_t>(std::max<std::int64_t>(shape.rows(), 1));
  return kind(shape) * kSizes + std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(rows)) - 1, kSizes - 1);
}

double LatencyModel::factor(const StepShape& shape) const { return std::exp(log_factor_[regime(shape)]); }

double LatencyModel::margin(const StepShape& shape) const { return std::exp(log_margin_[kind(shape)]); }

double LatencyModel::seconds(const StepShape& shape) const {
  return table_.milliseconds(shape) * 1e-3 * (learn_ ? factor(shape) : 1.0);
}

void LatencyModel::observe(const StepShape& shape, double seconds) {
  const double expected = table_.milliseconds(shape) * 1e-3;
  if (!learn_ || !(seconds > 0) || !(expected > 0)) return;
  const std::size_t r = regime(shape);
  double& log_factor = log_factor_[r];
  const double error = std::log(seconds / expected) - log_factor;
  // A quantile by stochastic approximation: up by 0.99 of a move, or down by 0.01 of it, so that they balance where one
  // step in a hundred is late. How late does not matter: one that was a second long counts as one.
  double& log_margin = log_margin_[kind(shape)];
  const double late = error > log_margin ? 1 : 0;
  log_margin = std::clamp(log_margin + kMarginMove * (late - kLateShare), kSmallestMargin, kLargestLog);
  seen_[r] = std::min(seen_[r] + 1, 1000U);
  const double rate = std::max(kRate, 1.0 / (seen_[r] + 1.0));
  const double surprise = std::clamp(error, -kLargestMove, kLargestMove);
  log_factor = std::clamp(log_factor + rate * surprise, -kLargestLog, kLargestLog);
}

}  // namespace spear
