#include "text/jinja_parser.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "text/jinja_builtins.h"
#include "text/jinja_lexer.h"

namespace spear::jinja {
namespace {

constexpr int kMaxNesting = 64;     // of brackets and of statements: parsing is recursive
constexpr int kMaxTreeDepth = 500;  // of an expression, e.g. a + b + c + ...: evaluation is recursive
constexpr const char* kSubset = "SPEAR renders for, if, set and expressions; edit the chat template";

class Parser : private TokenCursor {
 public:
  explicit Parser(std::string_view source) : TokenCursor(tokenize(source)) {}

  Block run() {
    Block block = statements({});
    if (!at_kind(TokenKind::end)) fail("unexpected '" + peek(1).text + "'");
    return block;
  }

 private:
  /// Counts nesting while it lives.
  struct Nested {
    explicit Nested(Parser& parser) : parser(parser) {
      if (++parser.nesting_ > kMaxNesting) parser.fail("the template is nested more than 64 levels");
    }
    ~Nested() { --parser.nesting_; }
    Parser& parser;
  };

  // ---- statements

  /// Up to, and not including, a block tag that begins with one of `ends`, or the end of the template.
  Block statements(const std::vector<std::string_view>& ends) {
    const Nested nested(*this);
    Block block;
    while (!at_kind(TokenKind::end)) {
      if (at_kind(TokenKind::text)) {
        block.statements.push_back({StatementKind::text, peek().at, peek().text, {}, {}, {}, {}});
        next();
      } else if (at_kind(TokenKind::output_begin)) {
        Statement statement{StatementKind::output, next().at, {}, {}, {}, {}, {}};
        statement.value = expression();
        expect(TokenKind::output_end, "}}");
        block.statements.push_back(std::move(statement));
      } else {
        const std::string& keyword = peek(1).text;
        if (std::find(ends.begin(), ends.end(), keyword) != ends.end()) break;
        if (ends.empty() && (keyword.starts_with("end") || keyword == "else" || keyword == "elif")) break;
        block.statements.push_back(tag());
      }
    }
    return block;
  }

  Statement tag() {
    next();
    const Position at = peek().at;
    const std::string keyword = identifier();
    if (keyword == "if") return if_statement(at);
    if (keyword == "for") return for_statement(at);
    if (keyword == "set") return set_statement(at);
    if (keyword == "generation") return generation_statement(at);
    throw error_at(at, "the statement '" + keyword + "' is not supported here", kSubset);
  }

  /// {% generation %}: marks what a model writes, for training alone. Names set within stay within.
  Statement generation_statement(Position at) {
    Statement statement{StatementKind::scope, at, {}, {}, {}, {}, {}};
    expect(TokenKind::block_end, "%}");
    statement.branches.push_back({nullptr, statements({"endgeneration"})});
    end_tag("endgeneration");
    return statement;
  }

  /// {% keyword %}, already looked at.
  void end_tag(const std::string& keyword) {
    expect(TokenKind::block_begin, "{% " + keyword + " %}");
    if (!skip_name(keyword)) fail("expected '" + keyword + "'" + found());
    expect(TokenKind::block_end, "%}");
  }

  Statement if_statement(Position at) {
    Statement statement{StatementKind::conditional, at, {}, {}, {}, {}, {}};
    NodePtr condition = expression();
    while (true) {
      expect(TokenKind::block_end, "%}");
      const bool last = condition == nullptr;
      Block body = last ? statements({"endif"}) : statements({"elif", "else", "endif"});
      statement.branches.push_back({std::move(condition), std::move(body)});
      if (at_kind(TokenKind::end)) fail("expected {% endif %}");
      if (peek(1).text == "endif") break;
      next();
      condition = next().text == "elif" ? expression() : nullptr;
    }
    end_tag("endif");
    return statement;
  }

  Statement for_statement(Position at) {
    Statement statement{StatementKind::loop, at, {}, {}, {}, {}, {}};
    do statement.targets.push_back(identifier());
    while (skip_symbol(","));
    if (!skip_name("in")) fail("expected 'in'" + found());
    statement.value = logical_or();
    if (skip_name("if")) statement.condition = expression();
    if (at_name("recursive")) fail("recursive loops are not supported", kSubset);
    expect(TokenKind::block_end, "%}");
    statement.branches.push_back({nullptr, statements({"else", "endfor"})});
    if (!at_kind(TokenKind::end) && peek(1).text == "else") {
      end_tag("else");
      statement.branches.push_back({nullptr, statements({"endfor"})});
    }
    end_tag("endfor");
    return statement;
  }

  Statement set_statement(Position at) {
    Statement statement{StatementKind::set, at, {}, {}, {}, {}, {}};
    statement.targets.push_back(identifier());
    if (skip_symbol(".")) statement.text = identifier();
    if (at_kind(TokenKind::block_end) || at_symbol("|")) fail("block assignments are not supported", kSubset);
    if (at_symbol(",")) fail("assigning several names at once is not supported", kSubset);
    expect_symbol("=");
    statement.value = expression();
    expect(TokenKind::block_end, "%}");
    return statement;
  }

  // ---- expressions, lowest precedence first, as in Jinja's own parser

  NodePtr node(NodeKind kind, Position at, std::string name = {}) const {
    auto result = std::make_unique<Node>();
    result->kind = kind;
    result->at = at;
    result->name = std::move(name);
    return result;
  }

  void add_child(Node& parent, NodePtr child) const {
    if (child != nullptr) parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxTreeDepth) throw error_at(parent.at, "the expression is too long or nested too deeply");
    parent.children.push_back(std::move(child));
  }

  NodePtr node_of(NodeKind kind, Position at, std::string name, NodePtr first, NodePtr second = nullptr) const {
    NodePtr result = node(kind, at, std::move(name));
    add_child(*result, std::move(first));
    if (second != nullptr) add_child(*result, std::move(second));
    return result;
  }

  NodePtr expression() {
    const Nested nested(*this);
    NodePtr value = logical_or();
    while (at_name("if")) {
      const Position at = next().at;
      NodePtr condition = logical_or();
      value = node_of(NodeKind::conditional, at, {}, std::move(value), std::move(condition));
      add_child(*value, skip_name("else") ? expression() : nullptr);
    }
    return value;
  }

  NodePtr logical_or() {
    NodePtr left = logical_and();
    while (at_name("or")) {
      const Position at = next().at;
      left = node_of(NodeKind::logical_or, at, {}, std::move(left), logical_and());
    }
    return left;
  }

  NodePtr logical_and() {
    NodePtr left = logical_not();
    while (at_name("and")) {
      const Position at = next().at;
      left = node_of(NodeKind::logical_and, at, {}, std::move(left), logical_not());
    }
    return left;
  }

  NodePtr logical_not() {
    if (!at_name("not")) return comparison();
    const Nested nested(*this);
    const Position at = next().at;
    return node_of(NodeKind::logical_not, at, {}, logical_not());
  }

  /// The comparison operator here, consumed; empty if there is none.
  std::string comparison_operator() {
    for (const char* symbol : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (skip_symbol(symbol)) return symbol;
    }
    if (skip_name("in")) return "in";
    if (at_name("not") && peek(1).kind == TokenKind::name && peek(1).text == "in") {
      next(), next();
      return "not in";
    }
    return {};
  }

  NodePtr comparison() {
    NodePtr left = sum();
    NodePtr result;
    while (true) {
      const Position at = peek().at;
      std::string operation = comparison_operator();
      if (operation.empty()) return result == nullptr ? std::move(left) : std::move(result);
      if (result == nullptr) result = node_of(NodeKind::compare, at, {}, std::move(left));
      result->operators.push_back(std::move(operation));
      add_child(*result, sum());
    }
  }

  template <std::size_t N>
  NodePtr left_associative(const std::array<const char*, N>& symbols, NodePtr (Parser::*operand)()) {
    NodePtr left = (this->*operand)();
    while (true) {
      const auto here =
          std::find_if(symbols.begin(), symbols.end(), [&](const char* symbol) { return at_symbol(symbol); });
      if (here == symbols.end()) return left;
      const Position at = next().at;
      left = node_of(NodeKind::binary, at, *here, std::move(left), (this->*operand)());
    }
  }

  NodePtr sum() { return left_associative(std::array{"+", "-"}, &Parser::concatenation); }
  NodePtr concatenation() { return left_associative(std::array{"~"}, &Parser::product); }
  NodePtr product() { return left_associative(std::array{"*", "//", "/", "%"}, &Parser::filtered); }

  NodePtr filtered() { return filters(unary()); }

  /// A sign binds tighter than a filter: -x | f is (-x) | f.
  NodePtr unary() {
    const Nested nested(*this);
    const Position at = peek().at;
    if (skip_symbol("-")) return node_of(NodeKind::negate, at, {}, unary());
    if (skip_symbol("+")) return unary();
    return postfix(primary());
  }

  NodePtr primary() {
    const Position at = peek().at;
    NodePtr result = node(NodeKind::literal, at);
    if (at_kind(TokenKind::string)) {
      std::string text;
      while (at_kind(TokenKind::string)) text += next().text;
      result->value.weight = 1 + text.size() / 64;
      result->value.data = std::make_shared<const std::string>(std::move(text));
    } else if (at_kind(TokenKind::integer)) {
      result->value.data = std::int64_t{std::stoll(next().text)};
    } else if (at_kind(TokenKind::real)) {
      result->value.data = std::stod(next().text);
    } else if (at_kind(TokenKind::name)) {
      const std::string name = next().text;
      if (name == "true" || name == "True" || name == "false" || name == "False") {
        result->value.data = name == "true" || name == "True";
      } else if (name == "none" || name == "None") {
        result->value.data = None{};
      } else {
        result = node(NodeKind::name, at, name);
      }
    } else if (skip_symbol("(")) {
      result = expression();
      if (at_symbol(",")) fail("tuples are not supported (use a list)", kSubset);
      expect_symbol(")");
    } else if (skip_symbol("[")) {
      result = node(NodeKind::list, at);
      while (!at_symbol("]")) {
        add_child(*result, expression());
        if (!skip_symbol(",")) break;
      }
      expect_symbol("]");
    } else if (skip_symbol("{")) {
      result = node(NodeKind::dict, at);
      while (!at_symbol("}")) {
        add_child(*result, expression());
        expect_symbol(":");
        add_child(*result, expression());
        if (!skip_symbol(",")) break;
      }
      expect_symbol("}");
    } else {
      fail("expected an expression" + found());
    }
    return result;
  }

  NodePtr postfix(NodePtr value) {
    while (true) {
      const Position at = peek().at;
      if (skip_symbol(".")) {
        if (at_kind(TokenKind::integer)) {
          value = node_of(NodeKind::subscript, at, {}, std::move(value), primary());
        } else {
          value = node_of(NodeKind::attribute, at, identifier(), std::move(value));
        }
      } else if (skip_symbol("[")) {
        value = subscript(std::move(value), at);
        expect_symbol("]");
      } else if (at_symbol("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
    }
  }

  NodePtr subscript(NodePtr value, Position at) {
    NodePtr first = at_symbol(":") ? nullptr : expression();
    if (!at_symbol(":")) return node_of(NodeKind::subscript, at, {}, std::move(value), std::move(first));
    NodePtr result = node_of(NodeKind::slice, at, {}, std::move(value));
    add_child(*result, std::move(first));
    for (int bound = 0; bound < 2; ++bound) {
      const bool present = skip_symbol(":") && !at_symbol(":") && !at_symbol("]");
      add_child(*result, present ? expression() : nullptr);
    }
    return result;
  }

  NodePtr call(NodePtr callee) {
    const Position at = callee->at;
    NodePtr result;
    if (callee->kind == NodeKind::name) {
      result = node(NodeKind::call, at, callee->name);
    } else if (callee->kind == NodeKind::attribute) {
      if (!is_method(callee->name)) throw error_at(at, "the method '" + callee->name + "' is not supported", kSubset);
      result = node_of(NodeKind::method, at, callee->name, std::move(callee->children[0]));
    } else {
      throw error_at(at, "only functions and methods can be called", kSubset);
    }
    arguments(*result);
    return result;
  }

  void arguments(Node& target) {
    expect_symbol("(");
    while (!at_symbol(")")) {
      if (at_symbol("*") || at_symbol("**")) fail("'*' in a call is not supported", kSubset);
      const Token& after = peek(1);
      if (at_kind(TokenKind::name) && after.kind == TokenKind::symbol && after.text == "=") {
        const std::string name = identifier();
        next();
        NodePtr value = expression();
        target.depth = std::max(target.depth, value->depth + 1);
        target.keywords.emplace_back(name, std::move(value));
      } else {
        add_child(target, expression());
      }
      if (!skip_symbol(",")) break;
    }
    expect_symbol(")");
  }

  NodePtr filters(NodePtr value) {
    while (true) {
      const Position at = peek().at;
      if (skip_symbol("|")) {
        const std::string name = identifier();
        if (!is_filter(name)) throw error_at(at, "the filter '" + name + "' is not supported", kSubset);
        value = node_of(NodeKind::filter, at, name, std::move(value));
        if (at_symbol("(")) arguments(*value);
      } else if (skip_name("is")) {
        const bool negated = skip_name("not");
        value = test(std::move(value), at);
        if (negated) value = node_of(NodeKind::logical_not, at, {}, std::move(value));
      } else {
        return value;
      }
    }
  }

  NodePtr test(NodePtr value, Position at) {
    const std::string name = identifier();
    if (!is_test(name)) throw error_at(at, "the test '" + name + "' is not supported", kSubset);
    NodePtr result = node_of(NodeKind::test, at, name, std::move(value));
    const TokenKind kind = peek().kind;
    if (at_symbol("(")) {
      arguments(*result);
    } else if (kind == TokenKind::string || kind == TokenKind::integer || kind == TokenKind::real || at_symbol("[") ||
               (kind == TokenKind::name && !at_name("else") && !at_name("or") && !at_name("and") && !at_name("if") &&
                !at_name("in") && !at_name("not") && !at_name("is"))) {
      add_child(*result, postfix(primary()));
    }
    return result;
  }

  int nesting_ = 0;
};

}  // namespace

Block parse(std::string_view source) { return Parser(source).run(); }

}  // namespace spear::jinja
