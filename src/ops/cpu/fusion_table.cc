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
