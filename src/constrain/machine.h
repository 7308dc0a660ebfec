// Runs a grammar over bytes: every way to read them at once, however many there are.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "constrain/grammar.h"

namespace spear::constrain {

/// Where a rule returns to: a set of (state, stack below it). Interned, shared, never changed. 0 is the bottom.
using StackId = std::uint32_t;

/// A set of (state, stack) with at most one stack per state: stacks that meet in a state become one with more ways to
/// return. That keeps an ambiguous grammar polynomial: what is to come depends on nothing but the state and the stack.
using SetId = std::uint32_t;

class Machine {
 public:
  explicit Machine(const Grammar& grammar);

  struct Config {
    StateId state;
    StackId stack;
    friend bool operator==(const Config&, const Config&) = default;
  };

  static constexpr SetId kDead = 0;
  static constexpr StackId kBottom = 0;

  /// Before the first byte.
  SetId start();
  /// Before the state alone, above the bottom.
  SetId before(StateId state);
  /// After the byte; kDead when it cannot come. Remembered.
  SetId step(SetId set, std::uint8_t byte) {
    const SetId known = sets_[set].next[byte];
    return known != kUnknown ? known : compute_step(set, byte);
  }
  /// The set behind a return from the stack; kDead for the bottom, which is_complete() tells of.
  SetId returned(StackId stack);

  /// The bottom was returned to: the text may end here.
  bool is_complete(SetId set) const { return sets_[set].complete; }
  /// Nothing can follow.
  bool is_over(SetId set) const { return sets_[set].live.empty(); }
  /// What the set was made of, before calls and jumps were followed.
  std::span<const Config> kernel(SetId set) const { return sets_[set].kernel; }

  std::size_t num_sets() const { return sets_.size(); }
  std::size_t num_stacks() const { return stacks_.size(); }
  /// Steps from here on count anew; too many throw Error(failed).
  void renew_budget() { steps_ = 0; }
  /// Forgets every other set, and returns its new name.
  SetId forget_all_but(SetId set);

 private:
  static constexpr SetId kUnknown = ~SetId{0};

  struct Stack {
    bool bottom = false;       // the bottom is one of the ways
    std::vector<Config> ways;  // by state
  };
  struct Set {
    std::vector<Config> live;  // those that read bytes
    std::vector<Config> kernel;
    bool complete = false;
    std::array<SetId, 256> next;
  };

  SetId compute_step(SetId set, std::uint8_t byte);
  SetId close(const std::vector<Config>& kernel);
  void add(StateId state, StackId stack, bool direct);
  void follow();
  void call_rules();
  SetId intern_set(std::vector<Config> kernel, bool complete);
  StackId intern_stack(bool bottom, std::vector<Config> ways);
  StackId unite(StackId a, StackId b, int depth = 0);
  StackId push(std::vector<Config> ways);
  void count(std::size_t steps);

  const Grammar& grammar_;
  std::vector<Set> sets_;
  std::vector<Stack> stacks_;
  std::unordered_multimap<std::size_t, SetId> set_index_;
  std::unordered_multimap<std::size_t, StackId> stack_index_;
  std::unordered_map<std::uint64_t, StackId> united_;
  std::unordered_map<StackId, SetId> returned_;
  std::size_t steps_ = 0;

  // Of the set that is being made.
  std::vector<std::uint32_t> slot_;  // [state] index in found_ + 1, or 0
  std::vector<Config> found_;
  std::vector<bool> direct_;  // of found_: of the kernel or returned to, no jump's or call's target
  std::vector<std::size_t> todo_;
  std::map<std::pair<std::uint32_t, RuleId>, std::vector<Config>> pending_;  // by order
  bool complete_ = false;
};

}  // namespace spear::constrain
