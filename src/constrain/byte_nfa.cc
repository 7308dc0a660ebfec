#include "constrain/byte_nfa.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <string>

#include "base/error.h"
#include "text/utf8.h"

namespace spear::constrain {
namespace {

Error too_large() {
  return bad_input("the automaton of this keyword is too large", "", "use smaller repetitions, fewer alternatives");
}

std::string escaped(char32_t code) {
  switch (code) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default: {
      constexpr char kDigits[] = "0123456789abcdef";
      return std::string("\\u00") + kDigits[code >> 4 & 15] + kDigits[code & 15];
    }
  }
}

bool must_escape(char32_t code) { return code < 0x20 || code == '"' || code == '\\'; }

}  // namespace

std::string json_spelling(std::string_view utf8) {
  std::string out;
  for (const char c : utf8) {
    const auto byte = static_cast<unsigned char>(c);
    if (must_escape(byte)) {
      out += escaped(byte);
    } else {
      out += c;
    }
  }
  return out;
}

StateId ByteNfa::add_state() {
  if (states_.size() >= kMostStates) throw too_large();
  states_.emplace_back();
  return static_cast<StateId>(states_.size() - 1);
}

void ByteNfa::add_byte(StateId from, std::uint8_t low, std::uint8_t high, StateId to) {
  states_[from].bytes.push_back({low, high, to});
}

StateId ByteNfa::add_text(StateId from, std::string_view text) {
  for (const char c : text) {
    const StateId next = add_state();
    add_byte(from, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c), next);
    from = next;
  }
  return from;
}

StateId ByteNfa::add_run(StateId from, std::uint8_t low, std::uint8_t high, int least, int most) {
  const StateId end = add_state();
  for (int i = 0; i < most; ++i) {
    if (i >= least) add_jump(from, end);
    const StateId next = add_state();
    add_byte(from, low, high, next);
    from = next;
  }
  add_jump(from, end);
  return end;
}

void ByteNfa::add_chars(StateId from, char32_t low, char32_t high, StateId to) {
  while (low <= high) {
    if (must_escape(low)) {
      add_text(from, escaped(low), to);
      ++low;
      continue;
    }
    char32_t last = high;
    if (low < '"') last = std::min<char32_t>(last, '"' - 1);
    if (low > '"' && low < '\\') last = std::min<char32_t>(last, '\\' - 1);
    if (low < 0xD800) last = std::min<char32_t>(last, 0xD7FF);
    if (low >= 0xD800 && low <= 0xDFFF) {  // no characters
      low = 0xE000;
      continue;
    }
    add_utf8(from, low, last, to);
    low = last + 1;
  }
}

/// Ranges whose encodings have ranges in every byte.
void ByteNfa::add_utf8(StateId from, char32_t low, char32_t high, StateId to) {
  for (const char32_t last : {0x7F, 0x7FF, 0xFFFF}) {
    if (low <= last && last < high) {
      add_utf8(from, low, last, to);
      return add_utf8(from, last + 1, high, to);
    }
  }
  if (high > 0x7F) {
    for (int i = 1; i < 4; ++i) {
      const char32_t mask = (char32_t{1} << (6 * i)) - 1;
      if ((low & ~mask) == (high & ~mask)) break;
      if ((low & mask) != 0) {
        add_utf8(from, low, low | mask, to);
        return add_utf8(from, (low | mask) + 1, high, to);
      }
      if ((high & mask) != mask) {
        add_utf8(from, low, (high & ~mask) - 1, to);
        return add_utf8(from, high & ~mask, high, to);
      }
    }
  }
  std::string first, second;
  append_utf8(first, low);
  append_utf8(second, high);
  for (std::size_t i = 0; i < first.size(); ++i) {
    const StateId next = i + 1 == first.size() ? to : add_state();
    add_byte(from, static_cast<std::uint8_t>(first[i]), static_cast<std::uint8_t>(second[i]), next);
    from = next;
  }
}

void ByteNfa::embed(GrammarBuilder& grammar, StateId from, StateId to) const {
  using Set = std::vector<StateId>;
  std::size_t steps = 0;
  std::vector<std::uint32_t> stamp(states_.size(), 0);
  std::uint32_t now = 0;
  const auto closed = [&](Set set) {
    ++now;
    Set out;
    for (const StateId s : set) {
      if (std::exchange(stamp[s], now) != now) out.push_back(s);
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      for (const StateId next : states_[out[i]].jumps) {
        if (std::exchange(stamp[next], now) != now) out.push_back(next);
      }
      if (++steps > kMostSteps) throw too_large();
    }
    std::sort(out.begin(), out.end());
    return out;
  };
  std::map<Set, StateId> known;
  std::vector<std::map<Set, StateId>::const_iterator> todo;
  const auto state_of = [&](Set set) {
    const auto [found, fresh] = known.try_emplace(std::move(set), 0);
    if (fresh) {
      if (known.size() > kMostDfaStates) throw too_large();
      found->second = grammar.add_state();
      if (std::binary_search(found->first.begin(), found->first.end(), kEnd)) grammar.add_jump(found->second, to);
      todo.push_back(found);
    }
    return found->second;
  };
  grammar.add_jump(from, state_of(closed({kStart})));
  while (!todo.empty()) {
    const auto current = todo.back();
    todo.pop_back();
    // Between two cuts every byte leads to the same states.
    std::vector<ByteEdge> edges;
    std::array<bool, 257> cuts{};
    for (const StateId s : current->first) {
      for (const ByteEdge& edge : states_[s].bytes) {
        edges.push_back(edge);
        cuts[edge.low] = cuts[edge.high + 1U] = true;
      }
    }
    StateId last_target = 0;
    int last_end = -1, range_begin = 0;
    const auto flush = [&] {
      if (last_end >= 0) {
        grammar.add_byte(current->second, static_cast<std::uint8_t>(range_begin),
                         static_cast<std::uint8_t>(last_end - 1), last_target);
      }
    };
    for (int begin = 0; begin < 256;) {
      int end = begin + 1;
      while (end < 256 && !cuts[static_cast<std::size_t>(end)]) ++end;
      Set targets;
      for (const ByteEdge& edge : edges) {
        if (edge.low <= begin && begin <= edge.high) targets.push_back(edge.target);
      }
      steps += edges.size();
      if (steps > kMostSteps) throw too_large();
      if (!targets.empty()) {
        const StateId target = state_of(closed(std::move(targets)));
        if (last_end != begin || last_target != target) {
          flush();
          range_begin = begin;
        }
        last_end = end;
        last_target = target;
      }
      begin = end;
    }
    flush();
  }
}

}  // namespace spear::constrain
