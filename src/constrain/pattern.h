// Regular expressions of JSON Schema ("pattern"), the part of them that is regular, as automata over JSON strings.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "constrain/byte_nfa.h"

namespace spear::constrain {

/// ECMA-262 with the u flag: literals, ., [...], \d \w \s and their complements, escapes of characters, groups, |, * +
/// ? {n,m} (lazy ones too: the same texts), ^ and $ at the ends of the outermost alternatives. Everything else is
/// refused with its position: look-around, back references, \b, \p, other flags. Parsed once, immutable.
class Pattern {
 public:
  /// Throws Error(bad_input); `where` names the keyword.
  Pattern(std::string_view source, const std::string& where);

  /// The texts that contain a match, as JSON strings spell them, without the quotes.
  void add_to(ByteNfa& nfa, StateId from, StateId to) const;

  /// Characters of the shortest text, and of the longest or kUnbounded.
  std::uint64_t shortest() const { return root_.least; }
  std::uint64_t longest() const { return root_.most; }
  static constexpr std::uint64_t kUnbounded = ~std::uint64_t{0};

  using Ranges = std::vector<std::pair<char32_t, char32_t>>;
  struct Node {
    enum class Kind { chars, sequence, choice, repeat } kind = Kind::sequence;
    Ranges ranges;                           // chars
    std::vector<Node> parts;                 // the others
    std::uint64_t minimum = 0, maximum = 0;  // repeat
    std::uint64_t least = 0, most = 0;       // characters
  };

 private:
  Node root_;
};

}  // namespace spear::constrain
