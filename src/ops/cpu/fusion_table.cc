#include "ops/cpu/fusion_table.h"

#include <algorithm>

namespace spear {
namespace {

constexpr double kNoise = 0.02;  // of a median

}  // namespace

const char* fusion_name(Fusion fusion) {
  constexpr const char* kNames[] = {"automatic", "late", "early", "separate"};
  return kNames[static_cast<std::size_t>(fusion)];
}

Fusion FusionTiming::best() const {
  const Fusion usual = FusionTable::default_for(tokens);
  const auto fastest = static_cast<std::size_t>(std::min_element(fused_us.begin(), fused_us.end()) - fused_us.begin());
  return fused_us[fastest] < (1 - kNoise) * us(usual) ? kFusions[fastest] : usual;
}

std::optional<CompensatorCost> compensator_cost(std::span<const FusionTiming> timings) {
  double n = 0, x1 = 0, x2 = 0, y1 = 0, xy = 0;
  for (const FusionTiming& timing : timings) {
    if (timing.tokens != 1) continue;
    const auto count = static_cast<double>(timing.count);
    const auto weights = static_cast<double>(timing.shape.ranks * (timing.shape.rows + timing.shape.cols));
    const double us = timing.us(timing.best()) - timing.plain_us;
    n += count;
    x1 += count * weights;
    x2 += count * weights * weights;
    y1 += count * us;
    xy += count * weights * us;
  }
  if (n == 0 || x2 == 0) return {};
  const double determinant = n * x2 - x1 * x1;
  CompensatorCost line{0, xy / x2};
  if (determinant > 1e-9 * n * x2) line = {(x2 * y1 - x1 * xy) / determinant, (n * xy - x1 * y1) / determinant};
  // At its bound, the other one alone has to explain what was measured.
  if (line.us_per_weight < 0) line = {y1 / n, 0};
  if (line.fixed_us < 0) line = {0, xy / x2};
  return CompensatorCost{std::max(0.0, line.fixed_us), std::max(0.0, line.us_per_weight)};
}

FusionTable::FusionTable(std::span<const FusionTiming> timings) {
  for (const FusionTiming& timing : timings) {
    const auto found = std::find(kTokens.begin(), kTokens.end(), timing.tokens);
    if (found != kTokens.end()) set(timing.shape, static_cast<std::size_t>(found - kTokens.begin()), timing.best());
  }
}

Fusion FusionTable::at(const FusionShape& shape, std::int64_t m) const {
  const auto found = choices_.find(shape);
  if (found == choices_.end()) return default_for(m);
  std::size_t index = 0;
  while (index + 1 < kTokens.size() && kTokens[index + 1] <= m) ++index;
  const Fusion chosen = found->second[index];
  return chosen == Fusion::automatic ? default_for(m) : chosen;
}

void FusionTable::set(const FusionShape& shape, std::size_t tokens_index, Fusion fusion) {
  choices_[shape].at(tokens_index) = fusion;  // the others begin as `automatic`, which is zero
}

}  // namespace spear
