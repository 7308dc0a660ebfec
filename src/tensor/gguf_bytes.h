// Numbers inside the blocks of GGUF's quantized types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor/dtype.h"

namespace spear {

inline unsigned byte_at(const std::byte* bytes, std::size_t i) { return std::to_integer<unsigned>(bytes[i]); }
inline int signed_at(const std::byte* bytes, std::size_t i) {
  return static_cast<std::int8_t>(std::to_integer<unsigned char>(bytes[i]));
}
inline std::uint16_t u16_at(const std::byte* bytes) {
  std::uint16_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}
inline float half_at(const std::byte* bytes) { return f16_to_f32(u16_at(bytes)); }

/// Five-bit code of weight i < 32: nibble as in Q4_0, bit i of the 32 fifth bits on top.
inline int five_bits(const std::byte* high, const std::byte* nibbles, std::size_t i) {
  const unsigned pair = byte_at(nibbles, i % 16);
  const unsigned low = i < 16 ? pair & 0xf : pair >> 4;
  return static_cast<int>(low | ((byte_at(high, i / 8) >> (i % 8)) & 1U) << 4);
}

}  // namespace spear
