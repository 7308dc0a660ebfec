// UTF-8: validation, and repair of text that arrives in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace spear {

/// Outcome of reading one character at the start of some bytes.
struct Utf8Char {
  enum class Kind { valid, invalid, incomplete };
  Kind kind = Kind::incomplete;
  std::size_t length = 0;  ///< bytes of the character, of the invalid part (maximal subpart), or of what is there
  char32_t code = 0;       ///< only if valid
};

/// Reads one character; `bytes` must not be empty. Surrogates, overlong forms and values above U+10FFFF are invalid.
Utf8Char read_utf8(std::string_view bytes);

/// Position of the first byte that isn't part of valid UTF-8; npos if there is none.
std::size_t find_invalid_utf8(std::string_view text);

/// Characters of valid UTF-8.
std::size_t count_characters(std::string_view text);

/// Unicode's White_Space property.
bool is_white_space(char32_t code);

void append_utf8(std::string& out, char32_t code);

/// Accepts bytes in any division and gives out whole characters only. Invalid bytes become U+FFFD, one per maximal
/// subpart (Unicode 3.9, as Rust and Python do).
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  /// Ends the text: an unfinished character becomes one U+FFFD.
  std::string finish();

 private:
  std::string pending_;  // at most 3 bytes
};

}  // namespace spear
