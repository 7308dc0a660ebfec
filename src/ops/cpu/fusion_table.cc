#include "ops/cpu/fusion_table.h"

namespace spear {

const char* fusion_name(Fusion fusion) {
  constexpr const char* kNames[] = {"automatic", "late", "early", "separate"};
  return kNames[static_cast<std::size_t>(fusion)];
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
