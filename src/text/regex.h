// Tokenizers' regular expressions, which are written for Oniguruma, run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace spear {

class Regex {
 public:
  enum class Syntax { regex, literal };

  /// Throws Error(bad_input) with the position for bad syntax and for constructs that PCRE2 would read differently
  /// (see translate_regex).
  Regex(std::string_view pattern, Syntax syntax, const std::string& where);

  /// Appends to `pieces` every match and every stretch between matches, in order, none empty: the division that
  /// `tokenizers` calls "Isolated". `text` must be valid UTF-8. Throws Error(bad_input) when the pattern backtracks
  /// beyond reason on this text.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  std::shared_ptr<const void> code_;
  std::string pattern_;
};

/// Oniguruma (Ruby syntax, Unicode) to PCRE2. Refused with their position: class intersections, nested and POSIX
/// classes, \w \b \h and other letters PCRE2 knows by another meaning, anchors, back references, groups other than
/// (...), (?:...), (?i:...), (?>...) and lookaround.
std::string translate_regex(std::string_view pattern, const std::string& where);

}  // namespace spear
