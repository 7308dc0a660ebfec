// The statistic of every measurement of time: what noise and outliers move least.
#pragma once

#include <algorithm>
#include <vector>

namespace spear {

/// The mean of the two in the middle for an even count; 0 without any.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

}  // namespace spear
