#include "text/jinja_lexer.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "text/utf8.h"

namespace spear::jinja {
namespace {

constexpr std::array<std::string_view, 23> kSymbols = {"**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~",
                                                       "[",  "]",  "(",  ")",  "{",  "}",  ">", "<", "=", ".", "|"};
constexpr std::string_view kPunctuation = ":,";

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

/// All line ends become \n; one at the very end is dropped, as Jinja does.
std::string normalize_newlines(std::string_view source) {
  std::string out;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) plain_text();
    tokens_.push_back({TokenKind::end, "", position(at_)});
    return std::move(tokens_);
  }

 private:
  /// Positions are asked for in rising order, so lines are counted once.
  Position position(std::size_t offset) {
    for (; counted_ < offset; ++counted_) {
      if (source_[counted_] == '\n') {
        ++line_;
        line_begin_ = counted_ + 1;
      }
    }
    return {line_, static_cast<int>(offset - line_begin_) + 1};
  }

  bool starts(std::string_view text) const { return std::string_view(source_).substr(at_).starts_with(text); }

  void skip_space() {
    while (at_ < source_.size() && is_space(source_[at_])) ++at_;
  }

  void plain_text() {
    std::size_t end = at_;
    while (true) {
      end = source_.find('{', end);
      if (end == std::string::npos) break;
      const char next = end + 1 < source_.size() ? source_[end + 1] : ' ';
      if (next == '{' || next == '%' || next == '#') break;
      ++end;
    }
    const std::size_t begin = at_;
    at_ = std::min(end, source_.size());
    std::string text = source_.substr(begin, at_ - begin);
    if (at_ < source_.size()) strip_before_tag(text);
    if (!text.empty()) tokens_.push_back({TokenKind::text, std::move(text), position(begin)});
    if (at_ < source_.size()) tag();
  }

  void strip_before_tag(std::string& text) const {
    const char sign = at_ + 2 < source_.size() ? source_[at_ + 2] : ' ';
    const auto all_space = [](std::string_view s) { return std::all_of(s.begin(), s.end(), is_space); };
    if (sign == '-') {
      while (!text.empty() && is_space(text.back())) text.pop_back();
    } else if (sign != '+' && source_[at_ + 1] != '{') {
      const std::size_t line = text.rfind('\n') + 1;  // npos + 1 == 0
      if ((line > 0 || line_starting_) && all_space(std::string_view(text).substr(line))) text.resize(line);
    }
  }

  void tag() {
    const Position at = position(at_);
    const char type = source_[at_ + 1];
    at_ += 2;
    if (type == '#') {
      if (starts("-") || starts("+")) ++at_;
      const std::size_t close = source_.find("#}", at_);
      if (close == std::string::npos) throw error_at(at, "a comment is not closed");
      const char sign = close > at_ ? source_[close - 1] : ' ';
      at_ = close;
      return after_tag(true, sign);
    }
    const bool output = type == '{';
    if (starts("-") || starts("+")) ++at_;
    tokens_.push_back({output ? TokenKind::output_begin : TokenKind::block_begin, "", at});
    brackets_.clear();
    const std::string_view close = output ? "}}" : "%}";
    while (true) {
      skip_space();
      if (at_ >= source_.size()) throw error_at(at, output ? "{{ is not closed" : "{% is not closed");
      const bool sign = starts("-") || (!output && starts("+"));
      if (brackets_.empty() && std::string_view(source_).substr(at_ + (sign ? 1 : 0)).starts_with(close)) {
        const char sign_character = sign ? source_[at_] : ' ';
        tokens_.push_back({output ? TokenKind::output_end : TokenKind::block_end, "", position(at_)});
        at_ += sign ? 1 : 0;
        return after_tag(!output, sign_character);
      }
      expression_token();
    }
  }

  /// `at_` is at the two closing characters.
  void after_tag(bool trim_newline, char sign) {
    at_ += 2;
    if (sign == '-') {
      skip_space();
    } else if (trim_newline && sign != '+' && starts("\n")) {
      ++at_;
    }
    line_starting_ = source_[at_ - 1] == '\n';
  }

  void expression_token() {
    const Position at = position(at_);
    const char c = source_[at_];
    if (is_name_start(c)) {
      const std::size_t begin = at_;
      while (at_ < source_.size() && (is_name_start(source_[at_]) || is_digit(source_[at_]))) ++at_;
      tokens_.push_back({TokenKind::name, source_.substr(begin, at_ - begin), at});
    } else if (is_digit(c)) {
      number(at);
    } else if (c == '\'' || c == '"') {
      string(at);
    } else {
      symbol(at);
    }
  }

  void number(Position at) {
    const std::size_t begin = at_;
    const auto digits = [&] {
      while (at_ < source_.size() && is_digit(source_[at_])) ++at_;
    };
    digits();
    bool real = false;
    if (at_ + 1 < source_.size() && source_[at_] == '.' && is_digit(source_[at_ + 1])) {
      real = true;
      ++at_;
      digits();
    }
    if (at_ < source_.size() && (is_name_start(source_[at_])))
      throw error_at(at, "this form of number is not supported");
    if (at_ - begin > 18) throw error_at(at, "the number has too many digits");
    tokens_.push_back({real ? TokenKind::real : TokenKind::integer, source_.substr(begin, at_ - begin), at});
  }

  void symbol(Position at) {
    std::string text;
    for (const std::string_view symbol : kSymbols) {
      if (text.empty() && starts(symbol)) text = symbol;
    }
    if (text.empty() && kPunctuation.find(source_[at_]) != std::string_view::npos) text = source_[at_];
    if (text.empty()) throw error_at(at, "an unexpected character");
    if (text == "(" || text == "[" || text == "{") brackets_ += text == "(" ? ')' : text == "[" ? ']' : '}';
    if (text == ")" || text == "]" || text == "}") {
      if (brackets_.empty() || brackets_.back() != text[0]) throw error_at(at, "an unexpected '" + text + "'");
      brackets_.pop_back();
    }
    at_ += text.size();
    tokens_.push_back({TokenKind::symbol, std::move(text), at});
  }

  void string(Position at) {
    const char quote = source_[at_++];
    std::string out;
    while (at_ < source_.size() && source_[at_] != quote) {
      if (source_[at_] == '\\') {
        escape(out, at);
      } else {
        out += source_[at_++];
      }
    }
    if (at_ >= source_.size()) throw error_at(at, "a string is not closed");
    ++at_;
    tokens_.push_back({TokenKind::string, std::move(out), at});
  }

  /// Python's escapes; an unknown one stays as it is.
  void escape(std::string& out, Position string_at) {
    static constexpr std::string_view kFrom = "nrtabfv\\'\"", kTo = "\n\r\t\a\b\f\v\\'\"";
    if (at_ + 1 >= source_.size()) throw error_at(string_at, "a string is not closed");
    const char c = source_[at_ + 1];
    at_ += 2;
    if (const std::size_t known = kFrom.find(c); known != std::string_view::npos) {
      out += kTo[known];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      append_code(out, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, string_at);
    } else if (c >= '0' && c <= '7') {
      --at_;
      std::size_t digits = 1;
      while (digits < 3 && at_ + digits < source_.size() && source_[at_ + digits] >= '0' &&
             source_[at_ + digits] <= '7')
        ++digits;
      append_code(out, digits, 8, string_at);
    } else if (c == 'N') {
      throw error_at(string_at, "the escape \\N{...} is not supported");
    } else if (c != '\n') {  // an escaped line end joins the lines
      out += '\\';
      out += c;
    }
  }

  void append_code(std::string& out, std::size_t digits, int base, Position string_at) {
    char32_t code = 0;
    for (std::size_t i = 0; i < digits; ++i, ++at_) {
      const char c = at_ < source_.size() ? source_[at_] : ' ';
      const int digit = is_digit(c)            ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : 16;
      if (digit >= base) throw error_at(string_at, "a string has a malformed escape");
      code = code * static_cast<char32_t>(base) + static_cast<char32_t>(digit);
      if (code > 0x10FFFF) throw error_at(string_at, "a string has an escape beyond U+10FFFF");
    }
    if (code >= 0xD800 && code <= 0xDFFF) throw error_at(string_at, "a string has half a surrogate pair");
    append_utf8(out, code);
  }

  std::string source_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0, counted_ = 0, line_begin_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the text so far ends a line
  std::string brackets_;       // closing ones that are expected; a tag can't end before
};

}  // namespace

Error error_at(Position at, const std::string& problem, const std::string& remedy) {
  return bad_input(problem, "chat template, line " + std::to_string(at.line) + ", column " + std::to_string(at.column),
                   remedy);
}

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace spear::jinja
