// The rules of JSON that every grammar shares, made when they are first needed.
#pragma once

#include <optional>
#include <string_view>

#include "constrain/byte_nfa.h"
#include "constrain/grammar.h"

namespace spear::constrain {

class JsonRules {
 public:
  explicit JsonRules(GrammarBuilder& builder) : builder_(builder) {}

  RuleId space();      ///< 1 or 2 spaces, or a line's end and up to 40 spaces or tabs: bounded, so nobody idles in it
  RuleId character();  ///< one of a string, however it is spelled
  RuleId string();
  RuleId number();   ///< at most 18 digits, 17 decimals, 2 digits of exponent
  RuleId integer();  ///< at most 18 digits
  RuleId value();    ///< any
  RuleId object();   ///< any
  RuleId array();    ///< any

  /// The state behind `from` and, if the model likes, white space.
  StateId add_space(StateId from);
  void add_automaton(const ByteNfa& nfa, StateId from, StateId to) { nfa.embed(builder_, from, to); }

 private:
  RuleId rule_of(std::optional<RuleId>& rule, const ByteNfa& nfa);
  void add_container(RuleId rule, char open, char close, bool keys);

  GrammarBuilder& builder_;
  std::optional<RuleId> space_, character_, string_, number_, integer_, value_, object_, array_;
};

}  // namespace spear::constrain
