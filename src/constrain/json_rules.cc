#include "constrain/json_rules.h"

namespace spear::constrain {
namespace {

constexpr int kIndentation = 40;

void add_hex(ByteNfa& nfa, StateId from, StateId to) {
  nfa.add_byte(from, '0', '9', to);
  nfa.add_byte(from, 'a', 'f', to);
  nfa.add_byte(from, 'A', 'F', to);
}

StateId add_hexes(ByteNfa& nfa, StateId from, int count) {
  for (int i = 0; i < count; ++i) {
    const StateId next = nfa.add_state();
    add_hex(nfa, from, next);
    from = next;
  }
  return from;
}

/// 'd' or 'D', a second digit of [low, high] (hexadecimal) and two more.
StateId add_surrogate(ByteNfa& nfa, StateId from, char low, char high) {
  const StateId d = nfa.add_state(), second = nfa.add_state();
  nfa.add_byte(from, 'd', 'd', d);
  nfa.add_byte(from, 'D', 'D', d);
  for (char digit = low; digit <= high; ++digit) {
    if (digit > '9' && digit < 'a') continue;
    const auto byte = static_cast<std::uint8_t>(digit);
    nfa.add_byte(d, byte, byte, second);
    if (digit >= 'a') nfa.add_byte(d, byte - 32U, byte - 32U, second);
  }
  return add_hexes(nfa, second, 2);
}

/// A character, by itself or by any escape; surrogates in pairs only.
void add_character(ByteNfa& nfa, StateId from, StateId to) {
  nfa.add_chars(from, 0x20, 0x21, to);
  nfa.add_chars(from, 0x23, 0x5B, to);
  nfa.add_chars(from, 0x5D, 0x10FFFF, to);
  const StateId escape = nfa.add_text(from, "\\");
  for (const char c : std::string_view("\"\\/bfnrt")) {
    nfa.add_byte(escape, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c), to);
  }
  const StateId unicode = nfa.add_text(escape, "u"), plain = nfa.add_state();
  nfa.add_byte(unicode, '0', '9', plain);
  for (const auto& [low, high] : {std::pair{'a', 'c'}, {'e', 'f'}, {'A', 'C'}, {'E', 'F'}}) {
    nfa.add_byte(unicode, static_cast<std::uint8_t>(low), static_cast<std::uint8_t>(high), plain);
  }
  nfa.add_jump(add_hexes(nfa, plain, 3), to);
  nfa.add_jump(add_surrogate(nfa, unicode, '0', '7'), to);
  nfa.add_jump(add_surrogate(nfa, nfa.add_text(add_surrogate(nfa, unicode, '8', 'b'), "\\u"), 'c', 'f'), to);
}

/// 0, or up to 18 digits.
StateId add_natural(ByteNfa& nfa, StateId from) {
  const StateId end = nfa.add_state(), first = nfa.add_state();
  nfa.add_byte(from, '0', '0', end);
  nfa.add_byte(from, '1', '9', first);
  nfa.add_jump(nfa.add_run(first, '0', '9', 0, 17), end);
  return end;
}

}  // namespace

RuleId JsonRules::rule_of(std::optional<RuleId>& rule, const ByteNfa& nfa) {
  rule = builder_.add_rule();
  const auto [start, end] = builder_.ends(*rule);
  nfa.embed(builder_, start, end);
  return *rule;
}

RuleId JsonRules::space() {
  if (space_) return *space_;
  ByteNfa nfa;
  nfa.add_jump(nfa.add_run(ByteNfa::kStart, ' ', ' ', 1, 2), ByteNfa::kEnd);
  const StateId line = nfa.add_text(ByteNfa::kStart, "\n");
  nfa.add_text(ByteNfa::kStart, "\r\n", line);
  StateId at = line;
  for (int i = 0; i < kIndentation; ++i) {
    const StateId next = nfa.add_state();
    nfa.add_byte(at, ' ', ' ', next);
    nfa.add_byte(at, '\t', '\t', next);
    nfa.add_jump(at, ByteNfa::kEnd);
    at = next;
  }
  nfa.add_jump(at, ByteNfa::kEnd);
  return rule_of(space_, nfa);
}

StateId JsonRules::add_space(StateId from) {
  const StateId behind = builder_.add_state();
  builder_.add_jump(from, behind);
  builder_.add_call(from, space(), behind);
  return behind;
}

RuleId JsonRules::character() {
  if (character_) return *character_;
  ByteNfa nfa;
  add_character(nfa, ByteNfa::kStart, ByteNfa::kEnd);
  return rule_of(character_, nfa);
}

RuleId JsonRules::string() {
  if (string_) return *string_;
  ByteNfa nfa;
  const StateId inside = nfa.add_text(ByteNfa::kStart, "\"");
  add_character(nfa, inside, inside);
  nfa.add_text(inside, "\"", ByteNfa::kEnd);
  return rule_of(string_, nfa);
}

RuleId JsonRules::number() {
  if (number_) return *number_;
  ByteNfa nfa;
  const StateId unsigned_part = nfa.add_text(ByteNfa::kStart, "-");
  nfa.add_jump(ByteNfa::kStart, unsigned_part);
  const StateId whole = add_natural(nfa, unsigned_part), decimal = nfa.add_state(), exponent = nfa.add_state();
  nfa.add_jump(whole, decimal);
  nfa.add_jump(nfa.add_run(nfa.add_text(whole, "."), '0', '9', 1, 17), decimal);
  nfa.add_jump(decimal, ByteNfa::kEnd);
  nfa.add_byte(decimal, 'e', 'e', exponent);
  nfa.add_byte(decimal, 'E', 'E', exponent);
  const StateId digits = nfa.add_state();
  nfa.add_jump(exponent, digits);
  nfa.add_byte(exponent, '+', '+', digits);
  nfa.add_byte(exponent, '-', '-', digits);
  nfa.add_jump(nfa.add_run(digits, '0', '9', 1, 2), ByteNfa::kEnd);
  return rule_of(number_, nfa);
}

RuleId JsonRules::integer() {
  if (integer_) return *integer_;
  ByteNfa nfa;
  nfa.add_text(ByteNfa::kStart, "0", ByteNfa::kEnd);
  const StateId first = nfa.add_state(), more = nfa.add_state(), sign = nfa.add_text(ByteNfa::kStart, "-");
  nfa.add_jump(ByteNfa::kStart, first);
  nfa.add_jump(sign, first);
  nfa.add_byte(first, '1', '9', more);
  nfa.add_jump(nfa.add_run(more, '0', '9', 0, 17), ByteNfa::kEnd);
  return rule_of(integer_, nfa);
}

RuleId JsonRules::value() {
  if (value_) return *value_;
  value_ = builder_.add_rule();
  const auto [start, end] = builder_.ends(*value_);
  for (const char* word : {"null", "true", "false"}) builder_.add_text(start, word, end);
  for (const RuleId rule : {string(), number(), object(), array()}) builder_.add_call(start, rule, end);
  return *value_;
}

RuleId JsonRules::object() {
  if (!object_) add_container(object_.emplace(builder_.add_rule()), '{', '}', true);
  return *object_;
}

RuleId JsonRules::array() {
  if (!array_) add_container(array_.emplace(builder_.add_rule()), '[', ']', false);
  return *array_;
}

void JsonRules::add_container(RuleId rule, char open, char close, bool keys) {
  const auto [start, end] = builder_.ends(rule);
  const StateId inside = add_space(builder_.add_text(start, {&open, 1}));
  const StateId item = builder_.add_state(), behind = builder_.add_state();
  builder_.add_text(inside, {&close, 1}, end);
  builder_.add_jump(inside, item);
  StateId before_value = item;
  if (keys) {
    const StateId key = builder_.add_state();
    builder_.add_call(item, string(), key);
    before_value = add_space(builder_.add_text(key, ":"));
  }
  builder_.add_call(before_value, value(), behind);
  builder_.add_jump(add_space(builder_.add_text(behind, ",")), item);
  builder_.add_text(add_space(behind), {&close, 1}, end);
}

}  // namespace spear::constrain
