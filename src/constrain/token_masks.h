// Which tokens may come in a state of the grammar, found once per state and then remembered.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "constrain/grammar.h"
#include "constrain/machine.h"
#include "constrain/vocabulary.h"

namespace spear::constrain {

/// One bit per token.
using TokenBits = std::vector<std::uint64_t>;

/// The tokens that fit in a state, whatever called its rule: those that end within the rule are known for good; where
/// one goes on behind the end of the rule, the caller has to say.
struct StateMask {
  std::vector<std::int32_t> few;     ///< allowed tokens, or
  TokenBits many;                    ///< their bits, where that takes less
  std::vector<std::uint32_t> exits;  ///< nodes of the vocabulary at which the rule has ended and tokens go on
};

/// Calls `take(node, set)` for every node below `top` that `set`, which is at `top`, can read.
template <class Take>
void walk(Machine& machine, const Vocabulary& vocabulary, std::uint32_t top, SetId set, std::vector<SetId>& by_depth,
          Take&& take) {
  const auto* nodes = vocabulary.nodes().data();
  const std::uint32_t end = nodes[top].end;
  const unsigned base = nodes[top].depth;
  if (by_depth.size() < vocabulary.longest() + 1U) by_depth.resize(vocabulary.longest() + 1U);
  by_depth[0] = set;
  for (std::uint32_t node = top + 1; node < end;) {
    const unsigned depth = nodes[node].depth - base;
    const SetId next = machine.step(by_depth[depth - 1], nodes[node].byte);
    if (next == Machine::kDead) {
      node = nodes[node].end;
      continue;
    }
    take(node, next);
    by_depth[depth] = next;
    ++node;
  }
}

/// Of one grammar and one vocabulary, which must outlive it; shared by every request that uses them, from any thread.
class TokenMasks {
 public:
  TokenMasks(const Grammar& grammar, const Vocabulary& vocabulary);

  /// Before `state`.
  std::shared_ptr<const StateMask> of(StateId state);

 private:
  static constexpr std::size_t kMostBytes = std::size_t{16} << 20;
  static constexpr std::size_t kMostSets = 4096;

  std::shared_ptr<const StateMask> compute(StateId state);

  const Grammar& grammar_;
  const Vocabulary& vocabulary_;
  std::mutex mutex_;
  std::unique_ptr<Machine> machine_;
  std::vector<SetId> by_depth_;
  std::unordered_map<StateId, std::shared_ptr<const StateMask>> known_;
  std::size_t bytes_ = 0;
};

}  // namespace spear::constrain
