// Decimal numbers between bounds, exactly.
#pragma once

#include <cstdint>
#include <optional>

#include "constrain/byte_nfa.h"

namespace spear::constrain {

/// Integers have at most 18 digits: every reader's 64 bits hold them.
constexpr std::int64_t kLargestInteger = 999'999'999'999'999'999;

struct Bound {
  std::int64_t value;
  bool exclusive = false;
};

/// Integers of [low, high], in [-kLargestInteger, kLargestInteger]; nothing when low > high.
void add_integers(ByteNfa& nfa, StateId from, StateId to, std::int64_t low, std::int64_t high);

/// Numbers between whole bounds, with up to 17 decimals and no exponent.
void add_numbers(ByteNfa& nfa, StateId from, StateId to, Bound low, Bound high);

}  // namespace spear::constrain
