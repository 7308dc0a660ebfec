// Template text to tokens, with Jinja's white-space control.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "text/jinja_ast.h"

namespace spear::jinja {

enum class TokenKind {
  text,
  output_begin,
  output_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  symbol,
  end
};

struct Token {
  TokenKind kind;
  std::string text;  ///< text, name, string (unescaped), digits, or the symbol
  Position at;
};

/// Error(bad_input) with line and column.
Error error_at(Position at, const std::string& problem, const std::string& remedy = {});

/// The tokens, `end` last; trim_blocks and lstrip_blocks are on. Throws error_at for malformed templates.
std::vector<Token> tokenize(std::string_view source);

/// A place in the tokens, and what a parser asks there.
class TokenCursor {
 public:
  explicit TokenCursor(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& peek(std::size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  /// The token here; the cursor moves on, but not past `end`.
  const Token& next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }

  [[noreturn]] void fail(const std::string& problem, const std::string& remedy = {}) const {
    throw error_at(peek().at, problem, remedy);
  }
  bool at_kind(TokenKind kind) const { return peek().kind == kind; }
  bool at_symbol(std::string_view text) const { return at_kind(TokenKind::symbol) && peek().text == text; }
  bool at_name(std::string_view text) const { return at_kind(TokenKind::name) && peek().text == text; }
  bool skip_symbol(std::string_view text) { return at_symbol(text) && (next(), true); }
  bool skip_name(std::string_view text) { return at_name(text) && (next(), true); }
  void expect_symbol(const std::string& text) {
    if (!skip_symbol(text)) fail("expected '" + text + "'" + found());
  }
  void expect(TokenKind kind, const std::string& what) {
    if (!at_kind(kind)) fail("expected " + what + found());
    next();
  }
  std::string identifier() {
    if (!at_kind(TokenKind::name)) fail("expected a name" + found());
    return next().text;
  }
  /// " instead of 'x'", for messages.
  std::string found() const { return peek().text.empty() ? "" : " instead of '" + peek().text + "'"; }

 private:
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
};

}  // namespace spear::jinja
