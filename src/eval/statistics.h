// Uncertainty of what is measured: bootstrap intervals over windows or items, and rank correlation.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace spear {

/// A value with its 95 % interval; low and high are NaN where there is only one sample to draw from.
struct Interval {
  double value = 0, low = 0, high = 0;

  bool excludes_zero() const { return low > 0 || high < 0; }
};

struct BootstrapOptions {
  std::uint64_t seed = 0;
  int resamples = 4000;
};

/// A statistic of the samples at `indices` (with repetitions). Read several series at the same indices and the
/// comparison is paired.
using Statistic = std::function<double(std::span<const std::int32_t> indices)>;

/// The statistic on `resamples` draws, with replacement, of `count` out of `count` samples.
/// Throws Error(bad_input) when count < 1, Error(usage) when resamples < 100.
std::vector<double> bootstrap_replicates(std::int64_t count, const Statistic& statistic,
                                         const BootstrapOptions& options = {});

/// 95 % expanded percentile interval (Hesterberg 2015): the percentiles are those of Student's t, so that 20 windows
/// are not taken for more than they are. `count` is the number of samples behind each replicate.
Interval percentile_interval(double value, std::vector<double> replicates, std::int64_t count);

/// Both of the above, with the statistic of the samples themselves as the value.
Interval bootstrap(std::int64_t count, const Statistic& statistic, const BootstrapOptions& options = {});

/// Mean of `values`, and mean of a - b drawn in pairs (sizes must agree: Error(failed)).
Interval bootstrap_mean(std::span<const double> values, const BootstrapOptions& options = {});
Interval bootstrap_difference(std::span<const double> a, std::span<const double> b,
                              const BootstrapOptions& options = {});

/// Spearman's rank correlation, ties at their mean rank; NaN when one side is constant or fewer than two values.
double spearman(std::span<const double> a, std::span<const double> b);

}  // namespace spear
