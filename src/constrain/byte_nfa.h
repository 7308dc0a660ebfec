// A small automaton over bytes for one leaf of a grammar: a pattern, an enum, a range of numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "constrain/grammar.h"

namespace spear::constrain {

class ByteNfa {
 public:
  ByteNfa() { states_.resize(2); }

  static constexpr StateId kStart = 0, kEnd = 1;

  /// Throws Error(bad_input) beyond kMostStates.
  StateId add_state();
  void add_byte(StateId from, std::uint8_t low, std::uint8_t high, StateId to);
  void add_jump(StateId from, StateId to) { states_[from].jumps.push_back(to); }
  StateId add_text(StateId from, std::string_view text);
  void add_text(StateId from, std::string_view text, StateId to) { add_jump(add_text(from, text), to); }
  /// `least` to `most` bytes of the range.
  StateId add_run(StateId from, std::uint8_t low, std::uint8_t high, int least, int most);

  /// One character of [low, high] as JSON strings spell it: \" \\ \n ... \u001f where they must, itself otherwise.
  void add_chars(StateId from, char32_t low, char32_t high, StateId to);

  /// The deterministic automaton of the same texts, between two states of the grammar. Throws Error(bad_input) when
  /// it is too large.
  void embed(GrammarBuilder& grammar, StateId from, StateId to) const;

 private:
  struct State {
    std::vector<ByteEdge> bytes;
    std::vector<StateId> jumps;
  };
  static constexpr std::size_t kMostStates = 100'000;
  static constexpr std::size_t kMostDfaStates = 20'000;
  static constexpr std::size_t kMostSteps = 20'000'000;

  void add_utf8(StateId from, char32_t low, char32_t high, StateId to);

  std::vector<State> states_;
};

/// The text between the quotes of a JSON string: what must be escaped is, by its short form where there is one.
std::string json_spelling(std::string_view utf8);

}  // namespace spear::constrain
