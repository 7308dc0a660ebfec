// GGUF types whose weights are unsigned codes with a scale and a minimum, or a scale and a zero point, per group.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spear {

inline constexpr std::int64_t kSmallestGgufGroup = 16;

struct GgufCodes {
  std::uint32_t id = 0;  ///< ggml_type number
  int bits = 4;          ///< of a code, unsigned
  std::int64_t block_size = 32, block_bytes = 0;
  std::int64_t group = 32;  ///< weights that share a scale
  int zero = 0;             ///< zero point; where it is not 0, minima are
  /// weight i = scales[i / group] * (codes[i] - zero) - minima[i / group] of one block. Scales and minima are F16 numbers (Q4_1,
  /// Q5_1), or such numbers times integers of 6 bits or, Q6_K, of 8.
  void (*unpack)(const std::byte* block, std::uint8_t* codes, float* scales, float* minima) = nullptr;
};

/// Of Q4_1, Q5_1, Q4_K, Q5_K or Q6_K; null for other types.
const GgufCodes* find_gguf_codes(std::uint32_t id);

}  // namespace spear
