// Elements of float32 and bfloat16 arrays under one name, for loops over either that vectorize.
#pragma once

#include <bit>
#include <cstdint>

#include "tensor/dtype.h"

namespace spear::elements {

inline __attribute__((always_inline)) float load(float v) { return v; }
inline __attribute__((always_inline)) float load(std::uint16_t v) { return bf16_to_f32(v); }
inline __attribute__((always_inline)) void store(float& to, float v) { to = v; }
/// Round to nearest even without the NaN branch, so that the loop vectorizes; NaN stays NaN or becomes infinity.
inline __attribute__((always_inline)) void store(std::uint16_t& to, float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  to = static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace spear::elements
