#include "constrain/pattern.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"

namespace spear::constrain {
namespace {

using Node = Pattern::Node;
using Ranges = Pattern::Ranges;

constexpr std::size_t kLongestSource = 4096;
constexpr std::uint64_t kMostRepeats = 1000;
constexpr int kMostDepth = 40;
constexpr char32_t kLast = 0x10FFFF;

std::uint64_t sum(std::uint64_t a, std::uint64_t b) {
  return a > Pattern::kUnbounded - b ? Pattern::kUnbounded : a + b;
}
std::uint64_t product(std::uint64_t a, std::uint64_t b) {
  return b != 0 && a > Pattern::kUnbounded / b ? Pattern::kUnbounded : a * b;
}

Ranges complement(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges out;
  char32_t next = 0;
  for (const auto& [low, high] : ranges) {
    if (low > next) out.emplace_back(next, low - 1);
    next = std::max<char32_t>(next, high + 1);
  }
  if (next <= kLast) out.emplace_back(next, kLast);
  return out;
}

const Ranges kDigits{{'0', '9'}};
const Ranges kWords{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const Ranges kSpaces{{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
                     {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const Ranges kLineEnds{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

Node chars(Ranges ranges) {
  Node node;
  node.kind = Node::Kind::chars;
  node.least = node.most = 1;
  node.ranges = std::move(ranges);
  return node;
}

Node repeat(Node part, std::uint64_t minimum, std::uint64_t maximum) {
  Node node;
  node.kind = Node::Kind::repeat;
  node.minimum = minimum;
  node.maximum = maximum;
  node.least = product(part.least, minimum);
  node.most = part.most == 0 ? 0 : product(part.most, maximum);
  node.parts.push_back(std::move(part));
  return node;
}

Node sequence(std::vector<Node> parts) {
  Node node;
  for (const Node& part : parts) {
    node.least = sum(node.least, part.least);
    node.most = sum(node.most, part.most);
  }
  node.parts = std::move(parts);
  return node;
}

Node choice(std::vector<Node> parts) {
  if (parts.size() == 1) return std::move(parts.front());
  Node node;
  node.kind = Node::Kind::choice;
  node.least = Pattern::kUnbounded;
  for (const Node& part : parts) {
    node.least = std::min(node.least, part.least);
    node.most = std::max(node.most, part.most);
  }
  node.parts = std::move(parts);
  return node;
}

class Parser {
 public:
  Parser(std::string_view source, const std::string& where) : source_(source), where_(where) {}

  Node parse() {
    std::vector<Node> alternatives;
    do {
      const bool begins = take('^');
      Node body = parse_sequence(0);
      const bool ends = take('$');
      std::vector<Node> parts;
      if (!begins) parts.push_back(repeat(chars({{0, kLast}}), 0, Pattern::kUnbounded));
      parts.push_back(std::move(body));
      if (!ends) parts.push_back(repeat(chars({{0, kLast}}), 0, Pattern::kUnbounded));
      alternatives.push_back(sequence(std::move(parts)));
    } while (take('|'));
    if (at_ != source_.size()) refuse("this");
    return choice(std::move(alternatives));
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw bad_input(fmt::format("pattern: {} at byte {} is not supported", what, at_), where_,
                    "use the regular part of ECMA expressions, anchors only at the ends");
  }

  bool more() const { return at_ < source_.size(); }
  bool take(char c) {
    if (!more() || source_[at_] != c) return false;
    ++at_;
    return true;
  }

  Node parse_choice(int depth) {
    if (depth > kMostDepth) refuse("so deep a group");
    std::vector<Node> alternatives;
    do {
      alternatives.push_back(parse_sequence(depth));
    } while (take('|'));
    return choice(std::move(alternatives));
  }

  Node parse_sequence(int depth) {
    std::vector<Node> parts;
    while (more() && source_[at_] != '|' && source_[at_] != ')' && !(depth == 0 && at_dollar_end())) {
      parts.push_back(parse_quantified(depth));
    }
    return sequence(std::move(parts));
  }

  bool at_dollar_end() const { return source_[at_] == '$' && (at_ + 1 == source_.size() || source_[at_ + 1] == '|'); }

  Node parse_quantified(int depth) {
    Node node = parse_atom(depth);
    if (!more()) return node;
    std::uint64_t minimum = 0, maximum = Pattern::kUnbounded;
    switch (source_[at_]) {
      case '*':
        ++at_;
        break;
      case '+':
        ++at_, minimum = 1;
        break;
      case '?':
        ++at_, maximum = 1;
        break;
      case '{':
        ++at_;
        minimum = parse_number();
        maximum = minimum;
        if (take(',')) maximum = more() && source_[at_] != '}' ? parse_number() : Pattern::kUnbounded;
        if (!take('}') || maximum < minimum) refuse("this repetition");
        break;
      default:
        return node;
    }
    take('?');
    if (more() && (source_[at_] == '*' || source_[at_] == '+' || source_[at_] == '{')) refuse("a second quantifier");
    return repeat(std::move(node), minimum, maximum);
  }

  std::uint64_t parse_number() {
    if (!more() || source_[at_] < '0' || source_[at_] > '9') refuse("this repetition");
    std::uint64_t value = 0;
    while (more() && source_[at_] >= '0' && source_[at_] <= '9') {
      value = value * 10 + static_cast<std::uint64_t>(source_[at_++] - '0');
      if (value > kMostRepeats) refuse("more than 1,000 repetitions");
    }
    return value;
  }

  Node parse_atom(int depth) {
    switch (source_[at_]) {
      case '(': {
        ++at_;
        if (take('?') && !take(':')) refuse("a group other than (...) and (?:...)");
        Node node = parse_choice(depth + 1);
        if (!take(')')) refuse("a group without an end");
        return node;
      }
      case '[':
        return chars(parse_class());
      case '.':
        ++at_;
        return chars(complement(kLineEnds));
      case '\\':
        return chars(parse_escape(false));
      case '^':
      case '$':
        refuse("an anchor inside the expression");
      case '*':
      case '+':
      case '?':
      case '{':
        refuse("a quantifier without anything before");
      default:
        break;
    }
    const char32_t code = parse_char();
    return chars({{code, code}});
  }

  char32_t parse_char() {
    const Utf8Char c = read_utf8(source_.substr(at_));
    if (c.kind != Utf8Char::Kind::valid) refuse("text that is not UTF-8");
    at_ += c.length;
    return c.code;
  }

  char32_t parse_hex(int digits) {
    char32_t code = 0;
    for (int i = 0; i < digits; ++i) {
      const char c = more() ? source_[at_] : ' ';
      if (c >= '0' && c <= '9') {
        code = code * 16 + static_cast<char32_t>(c - '0');
      } else if ((c | 32) >= 'a' && (c | 32) <= 'f') {
        code = code * 16 + static_cast<char32_t>((c | 32) - 'a' + 10);
      } else {
        refuse("this escape");
      }
      ++at_;
    }
    return code;
  }

  Ranges parse_escape(bool in_class) {
    ++at_;
    if (!more()) refuse("a backslash at the end");
    const char c = source_[at_++];
    const auto one = [](char32_t code) { return Ranges{{code, code}}; };
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWords;
      case 'W':
        return complement(kWords);
      case 's':
        return kSpaces;
      case 'S':
        return complement(kSpaces);
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        if (more() && source_[at_] >= '0' && source_[at_] <= '9') refuse("an octal escape");
        return one(0);
      case 'x':
        return one(parse_hex(2));
      case 'u':
        return one(parse_unicode());
      case 'b':
        if (in_class) return one('\b');
        break;
      default:
        if (std::string_view("^$\\.*+?()[]{}|/-\"'#%&,:;<=>@_`~! ").find(c) != std::string_view::npos) {
          return one(static_cast<char32_t>(c));
        }
    }
    --at_;
    refuse(fmt::format("\\{}", c));
  }

  char32_t parse_unicode() {
    char32_t code = 0;
    if (take('{')) {
      while (more() && source_[at_] != '}') {
        code = code * 16 + parse_hex(1);
        if (code > kLast) refuse("this code point");
      }
      if (!take('}')) refuse("this escape");
    } else {
      code = parse_hex(4);
      if (code >= 0xD800 && code < 0xDC00 && take('\\') && take('u')) {
        const char32_t low = parse_hex(4);
        if (low < 0xDC00 || low > 0xDFFF) refuse("half a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
    }
    if (code >= 0xD800 && code <= 0xDFFF) refuse("half a surrogate pair");
    return code;
  }

  Ranges parse_class() {
    ++at_;
    const bool negated = take('^');
    Ranges ranges;
    while (true) {
      if (!more()) refuse("a class without an end");
      if (take(']')) break;
      const Ranges low = source_[at_] == '\\' ? parse_escape(true) : one_char();
      const bool single = low.size() == 1 && low[0].first == low[0].second;
      if (at_ + 1 < source_.size() && source_[at_] == '-' && source_[at_ + 1] != ']') {
        ++at_;
        const Ranges high = source_[at_] == '\\' ? parse_escape(true) : one_char();
        if (!single || high.size() != 1 || high[0].first != high[0].second || high[0].first < low[0].first) {
          refuse("this range");
        }
        ranges.emplace_back(low[0].first, high[0].first);
      } else {
        ranges.insert(ranges.end(), low.begin(), low.end());
      }
    }
    return negated ? complement(std::move(ranges)) : ranges;
  }

  Ranges one_char() {
    const char32_t code = parse_char();
    return {{code, code}};
  }

  std::string_view source_;
  const std::string& where_;
  std::size_t at_ = 0;
};

/// The state behind the node.
StateId emit(ByteNfa& nfa, StateId from, const Node& node) {
  const StateId end = nfa.add_state();
  switch (node.kind) {
    case Node::Kind::chars:
      for (const auto& [low, high] : node.ranges) nfa.add_chars(from, low, high, end);
      break;
    case Node::Kind::sequence:
      for (const Node& part : node.parts) from = emit(nfa, from, part);
      nfa.add_jump(from, end);
      break;
    case Node::Kind::choice:
      for (const Node& part : node.parts) nfa.add_jump(emit(nfa, from, part), end);
      break;
    case Node::Kind::repeat: {
      const Node& part = node.parts.front();
      const bool open = node.maximum == Pattern::kUnbounded;
      const std::uint64_t copies = open ? node.minimum : node.maximum;
      for (std::uint64_t i = 0; i < copies; ++i) {
        if (i >= node.minimum) nfa.add_jump(from, end);
        from = emit(nfa, from, part);
      }
      if (open) {
        const StateId loop = nfa.add_state();
        nfa.add_jump(from, loop);
        nfa.add_jump(emit(nfa, loop, part), loop);
        from = loop;
      }
      nfa.add_jump(from, end);
      break;
    }
  }
  return end;
}

}  // namespace

Pattern::Pattern(std::string_view source, const std::string& where) {
  if (source.size() > kLongestSource) {
    throw bad_input(fmt::format("the pattern has more than {} bytes", kLongestSource), where, "use a shorter one");
  }
  root_ = Parser(source, where).parse();
}

void Pattern::add_to(ByteNfa& nfa, StateId from, StateId to) const { nfa.add_jump(emit(nfa, from, root_), to); }

}  // namespace spear::constrain
