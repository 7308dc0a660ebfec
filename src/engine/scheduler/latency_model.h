// The latency table and what has been learnt since it was measured.
#pragma once

#include <array>
#include <cstdint>

#include "engine/scheduler/latency_table.h"

namespace spear {

inline constexpr double kFirstMargin = 1.15;

/// Predicts a step's seconds: the table's value times a factor that follows what steps really took, one for each
/// regime (decodes alone, prompts alone, both; by powers of two of their rows). A second factor, the margin, one for
/// each of these three kinds, is moved until one step in a hundred takes longer than prediction times margin. Allocates
/// nothing.
class LatencyModel {
 public:
  /// `learn` false: the table and `margin` alone, as in tests and simulations. margin: what it starts with, 1 to 100,
  /// or Error(usage) is thrown.
  explicit LatencyModel(LatencyTable table, bool learn = true, double margin = kFirstMargin);

  /// What a step takes on average.
  double seconds(const StepShape& shape) const;
  /// What 99 % of such steps stay below: the number to hold against an objective.
  double seconds_at_most(const StepShape& shape) const { return seconds(shape) * margin(shape); }
  /// What a step really took. One that was far off (another process, a page fault) moves the factor a little only.
  void observe(const StepShape& shape, double seconds);

  const LatencyTable& table() const { return table_; }
  double factor(const StepShape& shape) const;
  double margin(const StepShape& shape) const;

 private:
  static constexpr std::size_t kKinds = 3, kSizes = 16;
  static std::size_t kind(const StepShape& shape) { return shape.prefill == 0 ? 0 : shape.decodes == 0 ? 1 : 2; }
  static std::size_t regime(const StepShape& shape);

  LatencyTable table_;
  bool learn_;
  std::array<double, kKinds * kSizes> log_factor_{};
  std::array<double, kKinds> log_margin_{};
  std::array<std::uint32_t, kKinds * kSizes> seen_{};
};

}  // namespace spear
