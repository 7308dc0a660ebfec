// The latency table and what has been learnt since it was measured.
#pragma once

#include <array>
#include <cstdint>

#include "engine/scheduler/latency_table.h"

namespace spear {

/// Predicts a step's seconds: the table's value times a factor that follows what steps really took, one for each
/// regime (decodes alone, prompts alone, both; by powers of two of their rows). Allocates nothing.
class LatencyModel {
 public:
  /// `learn` false: the table alone, as in tests and simulations.
  explicit LatencyModel(LatencyTable table, bool learn = true) : table_(std::move(table)), learn_(learn) {}

  double seconds(const StepShape& shape) const;
  /// What a step really took. One that was far off (another process, a page fault) moves the factor a little only.
  void observe(const StepShape& shape, double seconds);

  const LatencyTable& table() const { return table_; }
  double factor(const StepShape& shape) const;

 private:
  static constexpr std::size_t kSizes = 16;
  static std::size_t regime(const StepShape& shape);

  LatencyTable table_;
  bool learn_;
  std::array<double, 3 * kSizes> log_factor_{};
  std::array<std::uint32_t, 3 * kSizes> seen_{};
};

}  // namespace spear
