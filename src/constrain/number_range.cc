#include "constrain/number_range.h"

#include <algorithm>
#include <string>

namespace spear::constrain {
namespace {

constexpr int kDecimals = 17;

/// Texts of as many digits as both bounds have, from `low` to `high`; `at`: the position, tight: equal to the bound so
/// far.
void add_digits(ByteNfa& nfa, StateId from, StateId to, const std::string& low, const std::string& high, std::size_t at,
                bool tight_low, bool tight_high) {
  if (at == low.size()) return nfa.add_jump(from, to);
  if (!tight_low && !tight_high) {
    const int rest = static_cast<int>(low.size() - at);
    return nfa.add_jump(nfa.add_run(from, '0', '9', rest, rest), to);
  }
  auto first = static_cast<std::uint8_t>(tight_low ? low[at] : '0');
  auto last = static_cast<std::uint8_t>(tight_high ? high[at] : '9');
  const auto go = [&](std::uint8_t digit_low, std::uint8_t digit_high, bool still_low, bool still_high) {
    const StateId next = nfa.add_state();
    nfa.add_byte(from, digit_low, digit_high, next);
    add_digits(nfa, next, to, low, high, at + 1, still_low, still_high);
  };
  if (tight_low && tight_high && first == last) return go(first, last, true, true);
  if (tight_low) go(first, first, true, false), ++first;
  if (tight_high) go(last, last, false, true), --last;
  if (first <= last) go(first, last, false, false);
}

/// 0 <= low; nothing when low > high.
void add_naturals(ByteNfa& nfa, StateId from, StateId to, std::int64_t low, std::int64_t high) {
  // Numbers of as many digits as `most` has; 19 nines would be beyond 64 bits.
  for (std::int64_t least = 0, most = 9;; least = most + 1, most = most * 10 + 9) {
    const std::int64_t a = std::max(low, least), b = std::min(high, most);
    if (a <= b) add_digits(nfa, from, to, std::to_string(a), std::to_string(b), 0, true, true);
    if (most == kLargestInteger) return;
  }
}

/// "" or "." and decimals.
void add_any_fraction(ByteNfa& nfa, StateId from, StateId to) {
  nfa.add_jump(from, to);
  nfa.add_jump(nfa.add_run(nfa.add_text(from, "."), '0', '9', 1, kDecimals), to);
}

/// "" or "." and zeros.
void add_zero_fraction(ByteNfa& nfa, StateId from, StateId to) {
  nfa.add_jump(from, to);
  nfa.add_jump(nfa.add_run(nfa.add_text(from, "."), '0', '0', 1, kDecimals), to);
}

/// "." and decimals, not all of them zero.
void add_positive_fraction(ByteNfa& nfa, StateId from, StateId to) {
  const StateId zeros = nfa.add_run(nfa.add_text(from, "."), '0', '0', 0, kDecimals / 2);
  const StateId digit = nfa.add_state();
  nfa.add_byte(zeros, '1', '9', digit);
  nfa.add_jump(nfa.add_run(digit, '0', '9', 0, kDecimals / 2), to);
}

/// Numbers without sign from low to high, both at least 0.
void add_magnitudes(ByteNfa& nfa, StateId from, StateId to, Bound low, Bound high) {
  const StateId at_low = nfa.add_state(), between = nfa.add_state(), at_high = nfa.add_state();
  if (low.value > high.value) return;
  if (low.value == high.value) {
    if (low.exclusive || high.exclusive) return;
    add_naturals(nfa, from, at_high, low.value, low.value);
    return add_zero_fraction(nfa, at_high, to);
  }
  add_naturals(nfa, from, at_low, low.value, low.value);
  if (low.exclusive) {
    add_positive_fraction(nfa, at_low, to);
  } else {
    add_any_fraction(nfa, at_low, to);
  }
  add_naturals(nfa, from, between, low.value + 1, high.value - 1);
  add_any_fraction(nfa, between, to);
  if (high.exclusive) return;
  add_naturals(nfa, from, at_high, high.value, high.value);
  add_zero_fraction(nfa, at_high, to);
}

}  // namespace

void add_integers(ByteNfa& nfa, StateId from, StateId to, std::int64_t low, std::int64_t high) {
  add_naturals(nfa, from, to, std::max<std::int64_t>(low, 0), high);
  if (low < 0) add_naturals(nfa, nfa.add_text(from, "-"), to, std::max<std::int64_t>(1, -high), -low);
}

void add_numbers(ByteNfa& nfa, StateId from, StateId to, Bound low, Bound high) {
  if (high.value >= 0) add_magnitudes(nfa, from, to, low.value >= 0 ? low : Bound{0}, high);
  if (low.value >= 0) return;
  const Bound least = high.value < 0 ? Bound{-high.value, high.exclusive} : Bound{0, true};
  add_magnitudes(nfa, nfa.add_text(from, "-"), to, least, {-low.value, low.exclusive});
}

}  // namespace spear::constrain
