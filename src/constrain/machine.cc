#include "constrain/machine.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace spear::constrain {
namespace {

constexpr std::size_t kMostSteps = 5'000'000;  // for one mask: about a tenth of a second
constexpr std::size_t kMostStacks = 1'000'000;
constexpr int kMostDepth = 4'000;

Error too_ambiguous() {
  return failed("the schema allows too many readings of this output", "response_format",
                "make the alternatives of the schema easier to tell apart");
}

std::size_t hash_of(std::span<const Machine::Config> configs, bool flag) {
  std::uint64_t hash = flag ? 0x9E3779B97F4A7C15U : 0x243F6A8885A308D3U;
  for (const auto& config : configs) {
    hash ^= (std::uint64_t{config.state} << 32 | config.stack) + (hash << 6) + (hash >> 2);
    hash *= 0xFF51AFD7ED558CCDU;
    hash ^= hash >> 32;
  }
  return static_cast<std::size_t>(hash);
}

bool by_state(const Machine::Config& a, const Machine::Config& b) { return a.state < b.state; }

}  // namespace

Machine::Machine(const Grammar& grammar) : grammar_(grammar), slot_(grammar.num_states(), 0) {
  intern_set({}, false);   // kDead
  intern_stack(true, {});  // kBottom
}

void Machine::count(std::size_t steps) {
  steps_ += steps;
  if (steps_ > kMostSteps) throw too_ambiguous();
}

SetId Machine::start() { return before(grammar_.start(grammar_.root())); }

SetId Machine::before(StateId state) { return close({{state, kBottom}}); }

SetId Machine::compute_step(SetId set, std::uint8_t byte) {
  std::vector<Config> kernel;
  for (const Config& config : sets_[set].live) {
    for (const ByteEdge& edge : grammar_.bytes(config.state)) {
      if (edge.low <= byte && byte <= edge.high) kernel.push_back({edge.target, config.stack});
    }
  }
  const SetId next = kernel.empty() ? kDead : close(kernel);
  sets_[set].next[byte] = next;
  return next;
}

SetId Machine::returned(StackId stack) {
  if (const auto found = returned_.find(stack); found != returned_.end()) return found->second;
  const std::vector<Config> ways = stacks_[stack].ways;  // a copy: stacks are made meanwhile
  const SetId set = ways.empty() ? kDead : close(ways);
  returned_.emplace(stack, set);
  return set;
}

/// Returns first: they need the stacks of earlier positions only. Then calls, callers before what they call, so that
/// the stack of a rule that starts here knows all of its callers. No rule is empty: what starts here does not end here.
SetId Machine::close(const std::vector<Config>& kernel) {
  found_.clear();
  direct_.clear();
  todo_.clear();
  pending_.clear();
  complete_ = false;
  try {
    for (const Config& config : kernel) add(config.state, config.stack, true);
    while (!todo_.empty()) follow();
    std::vector<Config> base;
    for (std::size_t i = 0; i < found_.size(); ++i) {
      if (direct_[i] && !grammar_.is_leaf(found_[i].state)) base.push_back(found_[i]);
    }
    std::sort(base.begin(), base.end(), by_state);
    const bool complete = complete_;
    call_rules();
    const SetId set = base.empty() && !complete ? kDead : intern_set(std::move(base), complete);
    const bool fresh = set != kDead && sets_[set].live.empty();
    for (const Config& config : found_) {
      if (fresh && !grammar_.bytes(config.state).empty()) sets_[set].live.push_back(config);
      slot_[config.state] = 0;
    }
    return set;
  } catch (...) {
    std::fill(slot_.begin(), slot_.end(), 0);
    throw;
  }
}

void Machine::add(StateId state, StackId stack, bool direct) {
  count(1);
  if (slot_[state] == 0) {
    found_.push_back({state, stack});
    direct_.push_back(direct);
    slot_[state] = static_cast<std::uint32_t>(found_.size());
  } else {
    Config& known = found_[slot_[state] - 1];
    if (direct) direct_[slot_[state] - 1] = true;
    const StackId both = unite(known.stack, stack);
    if (both == known.stack) return;
    known.stack = both;
  }
  todo_.push_back(slot_[state] - 1);
}

/// Jumps and returns of one state; its calls wait.
void Machine::follow() {
  const Config config = found_[todo_.back()];
  todo_.pop_back();
  for (const StateId next : grammar_.jumps(config.state)) add(next, config.stack, false);
  for (const CallEdge& edge : grammar_.calls(config.state)) {
    pending_[{grammar_.order(edge.rule), edge.rule}].push_back({edge.target, config.stack});
    count(1);
  }
  if (!grammar_.accepts(config.state)) return;
  if (stacks_[config.stack].bottom) complete_ = true;
  for (std::size_t i = 0; i < stacks_[config.stack].ways.size(); ++i) {
    const Config way = stacks_[config.stack].ways[i];
    add(way.state, way.stack, true);
  }
}

void Machine::call_rules() {
  while (!pending_.empty()) {
    auto first = pending_.extract(pending_.begin());
    add(grammar_.start(first.key().second), push(std::move(first.mapped())), false);
    while (!todo_.empty()) follow();
  }
}

/// The stack with these ways to return.
StackId Machine::push(std::vector<Config> ways) {
  std::stable_sort(ways.begin(), ways.end(), by_state);
  std::size_t kept = 0;
  for (std::size_t i = 1; i < ways.size(); ++i) {
    if (ways[i].state == ways[kept].state) {
      ways[kept].stack = unite(ways[kept].stack, ways[i].stack);
    } else {
      ways[++kept] = ways[i];
    }
  }
  ways.resize(kept + 1);
  return intern_stack(false, std::move(ways));
}

StackId Machine::unite(StackId a, StackId b, int depth) {
  if (a == b) return a;
  if (a > b) std::swap(a, b);
  if (depth > kMostDepth) throw too_ambiguous();
  const std::uint64_t key = std::uint64_t{a} << 32 | b;
  if (const auto found = united_.find(key); found != united_.end()) return found->second;
  const std::vector<Config> left = stacks_[a].ways, right = stacks_[b].ways;
  const bool bottom = stacks_[a].bottom || stacks_[b].bottom;
  count(left.size() + right.size());
  std::vector<Config> ways;
  std::size_t i = 0, j = 0;
  while (i < left.size() || j < right.size()) {
    if (j == right.size() || (i < left.size() && left[i].state < right[j].state)) {
      ways.push_back(left[i++]);
    } else if (i == left.size() || right[j].state < left[i].state) {
      ways.push_back(right[j++]);
    } else {
      ways.push_back({left[i].state, unite(left[i].stack, right[j].stack, depth + 1)});
      ++i, ++j;
    }
  }
  const StackId both = intern_stack(bottom, std::move(ways));
  united_.emplace(key, both);
  return both;
}

StackId Machine::intern_stack(bool bottom, std::vector<Config> ways) {
  const std::size_t hash = hash_of(ways, bottom);
  for (auto [it, end] = stack_index_.equal_range(hash); it != end; ++it) {
    if (stacks_[it->second].bottom == bottom && stacks_[it->second].ways == ways) return it->second;
  }
  if (stacks_.size() >= kMostStacks) throw too_ambiguous();
  const auto id = static_cast<StackId>(stacks_.size());
  stacks_.push_back({bottom, std::move(ways)});
  stack_index_.emplace(hash, id);
  return id;
}

SetId Machine::intern_set(std::vector<Config> kernel, bool complete) {
  const std::size_t hash = hash_of(kernel, complete);
  for (auto [it, end] = set_index_.equal_range(hash); it != end; ++it) {
    if (sets_[it->second].complete == complete && sets_[it->second].kernel == kernel) return it->second;
  }
  const auto id = static_cast<SetId>(sets_.size());
  Set& set = sets_.emplace_back();
  set.kernel = std::move(kernel);
  set.complete = complete;
  set.next.fill(id == kDead ? kDead : kUnknown);
  set_index_.emplace(hash, id);
  return id;
}

SetId Machine::forget_all_but(SetId set) {
  if (set == kDead) return kDead;
  Set kept = std::move(sets_[set]);
  sets_.resize(1);
  set_index_.clear();
  set_index_.emplace(hash_of({}, false), kDead);
  returned_.clear();
  kept.next.fill(kUnknown);
  set_index_.emplace(hash_of(kept.kernel, kept.complete), 1);
  sets_.push_back(std::move(kept));
  return 1;
}

}  // namespace spear::constrain
