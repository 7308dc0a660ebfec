#include "constrain/grammar.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace spear::constrain {
namespace {

Error too_large(const char* what, std::size_t limit) {
  return bad_input(fmt::format("the schema needs more than {} {}", limit, what), "", "make the schema simpler");
}

}  // namespace

StateId Grammar::same_for(StateId state, std::uint32_t length) const {
  auto after = std::upper_bound(chains_.begin(), chains_.end(), state,
                                [](StateId s, const Chain& chain) { return s < chain.first; });
  if (after == chains_.begin()) return state;
  const Chain& chain = *--after;
  if (state - chain.first > chain.most) return state;
  const std::uint32_t index = state - chain.first;
  // Neither the least nor the most number can be passed within that many bytes.
  if (index < chain.least) return chain.least - index >= length ? chain.first : state;
  return chain.most - index >= length ? chain.first + chain.least : state;
}

StateId GrammarBuilder::add_state() {
  if (states_.size() >= limits_.states) throw too_large("states", limits_.states);
  states_.emplace_back();
  return static_cast<StateId>(states_.size() - 1);
}

void GrammarBuilder::count_edge() {
  if (++edges_ > limits_.edges) throw too_large("edges", limits_.edges);
}

void GrammarBuilder::add_byte(StateId from, std::uint8_t low, std::uint8_t high, StateId to) {
  count_edge();
  states_[from].bytes.push_back({low, high, to});
}

void GrammarBuilder::add_jump(StateId from, StateId to) {
  count_edge();
  states_[from].jumps.push_back(to);
}

void GrammarBuilder::add_call(StateId from, RuleId rule, StateId to) {
  count_edge();
  states_[from].calls.push_back({rule, to});
}

StateId GrammarBuilder::add_text(StateId from, std::string_view text) {
  for (const char c : text) {
    const StateId next = add_state();
    add_byte(from, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c), next);
    from = next;
  }
  return from;
}

void GrammarBuilder::add_text(StateId from, std::string_view text, StateId to) {
  if (text.empty()) return add_jump(from, to);
  const auto last = static_cast<std::uint8_t>(text.back());
  add_byte(add_text(from, text.substr(0, text.size() - 1)), last, last, to);
}

RuleId GrammarBuilder::add_rule() {
  if (rules_.size() >= limits_.rules) throw too_large("rules", limits_.rules);
  const StateId start = add_state();
  rules_.push_back({start, add_state()});
  return static_cast<RuleId>(rules_.size() - 1);
}

void GrammarBuilder::add_chain(StateId from, RuleId piece, std::uint32_t least, std::optional<std::uint32_t> most,
                               StateId to) {
  const auto first = static_cast<StateId>(states_.size());
  const std::uint32_t last = most.value_or(least);
  for (std::uint32_t i = 0; i <= last; ++i) {
    const StateId state = add_state();
    if (i > 0) add_call(state - 1, piece, state);
    if (i >= least) add_jump(state, to);
  }
  if (!most) add_call(first + last, piece, first + last);
  add_jump(from, first);
  chains_.push_back({first, least, last});
}

/// States from which the end of their rule can be reached.
std::vector<bool> GrammarBuilder::productive() const {
  std::vector<std::vector<StateId>> before(states_.size());   // sources of bytes, jumps and calls, by target
  std::vector<std::vector<StateId>> callers(states_.size());  // by the rule's start
  std::vector<bool> good(states_.size());
  std::vector<StateId> todo;
  for (StateId s = 0; s < states_.size(); ++s) {
    for (const ByteEdge& edge : states_[s].bytes) before[edge.target].push_back(s);
    for (const StateId target : states_[s].jumps) before[target].push_back(s);
    for (const CallEdge& edge : states_[s].calls) {
      before[edge.target].push_back(s);
      callers[rules_[edge.rule].start].push_back(s);
    }
  }
  const auto mark = [&](StateId s) {
    if (good[s]) return;
    good[s] = true;
    todo.push_back(s);
  };
  const auto any_good = [&](const State& state) {
    return std::any_of(state.bytes.begin(), state.bytes.end(), [&](const ByteEdge& e) { return good[e.target]; }) ||
           std::any_of(state.jumps.begin(), state.jumps.end(), [&](StateId t) { return good[t]; }) ||
           std::any_of(state.calls.begin(), state.calls.end(),
                       [&](const CallEdge& e) { return good[e.target] && good[rules_[e.rule].start]; });
  };
  for (const Ends& rule : rules_) mark(rule.end);
  while (!todo.empty()) {
    const StateId s = todo.back();
    todo.pop_back();
    for (const auto* sources : {&before[s], &callers[s]}) {
      for (const StateId source : *sources) {
        if (!good[source] && any_good(states_[source])) mark(source);
      }
    }
  }
  return good;
}

/// Depth first over the calls with which rules begin.
void GrammarBuilder::order_rules(Grammar& grammar) const {
  const std::size_t n = rules_.size();
  std::vector<std::vector<RuleId>> first_calls(n);
  for (RuleId rule = 0; rule < n; ++rule) {
    std::vector<StateId> seen{rules_[rule].start};
    for (std::size_t i = 0; i < seen.size(); ++i) {
      if (grammar.accepts(seen[i])) throw failed("a rule of the grammar matches the empty text");
      for (const CallEdge& edge : grammar.calls(seen[i])) first_calls[rule].push_back(edge.rule);
      for (const StateId next : grammar.jumps(seen[i])) {
        if (std::find(seen.begin(), seen.end(), next) == seen.end()) seen.push_back(next);
      }
    }
  }
  enum : std::uint8_t { fresh, open, closed };
  std::vector<std::uint8_t> marks(n, fresh);
  auto order = static_cast<std::uint32_t>(n);
  std::vector<std::pair<RuleId, std::size_t>> path;
  for (RuleId root = 0; root < n; ++root) {
    if (marks[root] != fresh) continue;
    path.emplace_back(root, 0);
    marks[root] = open;
    while (!path.empty()) {
      auto& [rule, next] = path.back();
      if (next == first_calls[rule].size()) {
        marks[rule] = closed;
        grammar.rules_[rule].order = --order;
        path.pop_back();
        continue;
      }
      const RuleId called = first_calls[rule][next++];
      if (marks[called] == open) {
        throw bad_input("a schema refers to itself without anything in between", "$ref",
                        "let the reference stand inside of properties or items");
      }
      if (marks[called] == fresh) {
        marks[called] = open;
        path.emplace_back(called, 0);
      }
    }
  }
}

Grammar GrammarBuilder::build(RuleId root) const {
  const std::vector<bool> good = productive();
  if (!good[rules_[root].start]) {
    throw bad_input("no value fits the schema", "", "look for false schemas, empty enums and bounds that cross");
  }
  Grammar grammar;
  grammar.root_ = root;
  grammar.chains_ = chains_;
  grammar.states_.resize(states_.size() + 1);
  for (StateId s = 0; s < states_.size(); ++s) {
    Grammar::State& state = grammar.states_[s];
    state.bytes = static_cast<std::uint32_t>(grammar.bytes_.size());
    state.calls = static_cast<std::uint32_t>(grammar.calls_.size());
    state.jumps = static_cast<std::uint32_t>(grammar.jumps_.size());
    for (const ByteEdge& edge : states_[s].bytes) {
      if (good[edge.target]) grammar.bytes_.push_back(edge);
    }
    for (const CallEdge& edge : states_[s].calls) {
      if (good[edge.target] && good[rules_[edge.rule].start]) grammar.calls_.push_back(edge);
    }
    for (const StateId target : states_[s].jumps) {
      if (good[target]) grammar.jumps_.push_back(target);
    }
  }
  Grammar::State& end = grammar.states_.back();
  end.bytes = static_cast<std::uint32_t>(grammar.bytes_.size());
  end.calls = static_cast<std::uint32_t>(grammar.calls_.size());
  end.jumps = static_cast<std::uint32_t>(grammar.jumps_.size());
  for (const Ends& rule : rules_) {
    grammar.rules_.push_back({rule.start, 0});
    grammar.states_[rule.end].accepts = true;
  }
  order_rules(grammar);
  return grammar;
}

}  // namespace spear::constrain
