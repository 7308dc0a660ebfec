// What a text may be: rules of byte automata that call each other, ready to be run by a Machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace spear::constrain {

using StateId = std::uint32_t;
using RuleId = std::uint32_t;

struct ByteEdge {
  std::uint8_t low, high;
  StateId target;
};

/// The rule's text stands between the state and `target`.
struct CallEdge {
  RuleId rule;
  StateId target;
};

/// Immutable. No rule matches the empty text, none begins with itself, and from every state the end of its rule can
/// be reached: whoever follows the edges never gets stuck.
class Grammar {
 public:
  std::size_t num_states() const { return states_.size(); }
  RuleId root() const { return root_; }
  StateId start(RuleId rule) const { return rules_[rule].start; }
  /// Rules that begin with a call of another rule have a lower order than that rule.
  std::uint32_t order(RuleId rule) const { return rules_[rule].order; }
  std::size_t num_rules() const { return rules_.size(); }

  bool accepts(StateId state) const { return states_[state].accepts; }
  std::span<const ByteEdge> bytes(StateId state) const {
    return std::span(bytes_).subspan(states_[state].bytes, states_[state + 1].bytes - states_[state].bytes);
  }
  std::span<const CallEdge> calls(StateId state) const {
    return std::span(calls_).subspan(states_[state].calls, states_[state + 1].calls - states_[state].calls);
  }
  std::span<const StateId> jumps(StateId state) const {
    return std::span(jumps_).subspan(states_[state].jumps, states_[state + 1].jumps - states_[state].jumps);
  }
  /// Nothing follows, except the end of the rule.
  bool is_leaf(StateId state) const { return bytes(state).empty() && calls(state).empty() && jumps(state).empty(); }

  /// A state before which texts of up to `length` bytes behave as before this one: counted repetitions have many.
  StateId same_for(StateId state, std::uint32_t length) const;

 private:
  friend class GrammarBuilder;

  struct State {
    std::uint32_t bytes = 0, calls = 0, jumps = 0;  // where its edges begin
    bool accepts = false;
  };
  struct Rule {
    StateId start = 0;
    std::uint32_t order = 0;
  };
  struct Chain {
    StateId first;
    std::uint32_t least, most;  // state first + i: after i pieces
  };

  std::vector<State> states_;  // and one more, for the ends of the edges
  std::vector<Rule> rules_;
  std::vector<ByteEdge> bytes_;
  std::vector<CallEdge> calls_;
  std::vector<StateId> jumps_;
  std::vector<Chain> chains_;  // by first
  RuleId root_ = 0;
};

/// What a grammar may take; schemas come from clients.
struct GrammarLimits {
  std::size_t states = 100'000;
  std::size_t edges = 500'000;
  std::size_t rules = 10'000;
};

/// Puts a grammar together. Everything throws Error(bad_input) at the limits.
class GrammarBuilder {
 public:
  explicit GrammarBuilder(GrammarLimits limits = {}) : limits_(limits) {}

  struct Ends {
    StateId start, end;
  };

  StateId add_state();
  void add_byte(StateId from, std::uint8_t low, std::uint8_t high, StateId to);
  void add_jump(StateId from, StateId to);
  void add_call(StateId from, RuleId rule, StateId to);
  /// The state behind `text`, or `to`.
  StateId add_text(StateId from, std::string_view text);
  void add_text(StateId from, std::string_view text, StateId to);
  RuleId add_rule();
  Ends ends(RuleId rule) const { return rules_[rule]; }
  /// From least to most times `piece`, without a most any number: state first + i is behind i of them; `to` follows
  /// where that is enough.
  void add_chain(StateId from, RuleId piece, std::uint32_t least, std::optional<std::uint32_t> most, StateId to);

  /// Throws Error(bad_input) when no text fits the root, or a rule begins with itself.
  Grammar build(RuleId root) const;

 private:
  struct State {
    std::vector<ByteEdge> bytes;
    std::vector<CallEdge> calls;
    std::vector<StateId> jumps;
  };

  void count_edge();
  std::vector<bool> productive() const;
  void order_rules(Grammar& grammar) const;

  GrammarLimits limits_;
  std::size_t edges_ = 0;
  std::vector<State> states_;
  std::vector<Ends> rules_;
  std::vector<Grammar::Chain> chains_;
};

}  // namespace spear::constrain
