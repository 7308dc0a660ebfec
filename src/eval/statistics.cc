#include "eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kNormal975 = 1.959963984540054;

/// 97.5 % point of Student's t, Cornish-Fisher about the normal; within 2 % from 3 degrees of freedom on.
double student_975(double degrees) {
  constexpr double z = kNormal975;
  const double z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;
  return z + (z3 + z) / (4 * degrees) + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees * degrees) +
         (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees * degrees * degrees);
}

/// Linear interpolation between order statistics.
double quantile(const std::vector<double>& sorted, double p) {
  const double position = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], position - static_cast<double>(below));
}

std::vector<double> mean_ranks(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    const double rank = static_cast<double>(begin + end - 1) / 2;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = rank;
  }
  return ranks;
}

double mean_at(std::span<const double> values, std::span<const std::int32_t> indices) {
  double sum = 0;
  for (const std::int32_t i : indices) sum += values[static_cast<std::size_t>(i)];
  return sum / static_cast<double>(indices.size());
}

void require_equal_sizes(std::size_t a, std::size_t b) {
  if (a != b) throw failed("a paired comparison needs two series of equal length");
}

}  // namespace

std::vector<double> bootstrap_replicates(std::int64_t count, const Statistic& statistic,
                                         const BootstrapOptions& options) {
  if (count < 1 || count > std::numeric_limits<std::int32_t>::max()) {
    throw bad_input("there is nothing to take an interval of", {}, "measure at least one window or item");
  }
  if (options.resamples < 100) throw usage_error("a 95 % interval needs at least 100 resamples");
  Random random(options.seed, /*stream=*/0xb007);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(count));
  std::vector<double> replicates(static_cast<std::size_t>(options.resamples));
  for (double& replicate : replicates) {
    for (auto& index : indices) index = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(count)));
    replicate = statistic(indices);
  }
  return replicates;
}

Interval percentile_interval(double value, std::vector<double> replicates, std::int64_t count) {
  const bool finite = std::all_of(replicates.begin(), replicates.end(), [](double r) { return std::isfinite(r); });
  if (count < 2 || replicates.empty() || !finite) return {value, kNan, kNan};
  std::sort(replicates.begin(), replicates.end());
  // Few samples: their spread is too small by sqrt((n - 1) / n), and the normal's tails by normal / t.
  const double degrees = static_cast<double>(count - 1);
  const double widened = std::sqrt(1 + 1 / degrees) * student_975(std::max(degrees, 3.0));
  const double tail = 0.5 * std::erfc(widened / std::sqrt(2.0));
  return {value, quantile(replicates, tail), quantile(replicates, 1 - tail)};
}

Interval bootstrap(std::int64_t count, const Statistic& statistic, const BootstrapOptions& options) {
  auto replicates = bootstrap_replicates(count, statistic, options);
  std::vector<std::int32_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return percentile_interval(statistic(all), std::move(replicates), count);
}

Interval bootstrap_mean(std::span<const double> values, const BootstrapOptions& options) {
  return bootstrap(
      static_cast<std::int64_t>(values.size()), [&](auto indices) { return mean_at(values, indices); }, options);
}

Interval bootstrap_difference(std::span<const double> a, std::span<const double> b, const BootstrapOptions& options) {
  require_equal_sizes(a.size(), b.size());
  return bootstrap(
      static_cast<std::int64_t>(a.size()), [&](auto indices) { return mean_at(a, indices) - mean_at(b, indices); },
      options);
}

double spearman(std::span<const double> a, std::span<const double> b) {
  require_equal_sizes(a.size(), b.size());
  if (a.size() < 2) return kNan;
  const auto ranks_a = mean_ranks(a), ranks_b = mean_ranks(b);
  const double mean = static_cast<double>(a.size() - 1) / 2;
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double da = ranks_a[i] - mean, db = ranks_b[i] - mean;
    ab += da * db;
    aa += da * da;
    bb += db * db;
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : kNan;
}

}  // namespace spear
