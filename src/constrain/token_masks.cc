#include "constrain/token_masks.h"

namespace spear::constrain {

TokenMasks::TokenMasks(const Grammar& grammar, const Vocabulary& vocabulary)
    : grammar_(grammar), vocabulary_(vocabulary) {}

std::shared_ptr<const StateMask> TokenMasks::of(StateId state) {
  const StateId same = grammar_.same_for(state, vocabulary_.longest());
  const std::lock_guard lock(mutex_);
  if (const auto found = known_.find(same); found != known_.end()) return found->second;
  auto mask = compute(same);
  const std::size_t bytes = sizeof(StateMask) + mask->few.size() * 4 + mask->many.size() * 8 + mask->exits.size() * 4;
  if (bytes_ + bytes > kMostBytes) {
    known_.clear();
    bytes_ = 0;
  }
  bytes_ += bytes;
  known_.emplace(same, mask);
  return mask;
}

std::shared_ptr<const StateMask> TokenMasks::compute(StateId state) {
  if (!machine_ || machine_->num_sets() > kMostSets) machine_ = std::make_unique<Machine>(grammar_);
  machine_->renew_budget();
  auto mask = std::make_shared<StateMask>();
  const auto* nodes = vocabulary_.nodes().data();
  try {
    walk(*machine_, vocabulary_, 0, machine_->before(state), by_depth_, [&](std::uint32_t node, SetId set) {
      const auto tokens = vocabulary_.tokens(node);
      mask->few.insert(mask->few.end(), tokens.begin(), tokens.end());
      if (machine_->is_complete(set) && nodes[node].end > node + 1) mask->exits.push_back(node);
    });
  } catch (...) {
    machine_.reset();
    throw;
  }
  const auto words = (static_cast<std::size_t>(vocabulary_.size()) + 63) / 64;
  if (mask->few.size() > 2 * words) {
    mask->many.resize(words);
    for (const std::int32_t token : mask->few) {
      mask->many[static_cast<std::size_t>(token) / 64] |= std::uint64_t{1} << (token % 64);
    }
    mask->few = {};
  }
  mask->few.shrink_to_fit();
  mask->exits.shrink_to_fit();
  return mask;
}

}  // namespace spear::constrain
