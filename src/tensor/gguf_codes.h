// GGUF types whose weights are 4- or 5-bit codes with a scale and a minimum per 32 weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spear {

inline constexpr std::int64_t kGgufCodeGroup = 32;  ///< weights that share a scale and a minimum

struct GgufCodes {
  std::uint32_t id = 0;  ///< ggml_type number
  int bits = 4;          ///< of a code, unsigned
  std::int64_t block_size = 32, block_bytes = 0;
  /// weight i = scales[i / 32] * codes[i] - minima[i / 32] of one block. Scales and minima are F16 numbers (Q4_1, Q5_1), or
  /// such numbers times 6-bit integers.
  void (*unpack)(const std::byte* block, std::uint8_t* codes, float* scales, float* minima) = nullptr;
};

/// Of Q4_1, Q5_1, Q4_K or Q5_K; null for other types.
const GgufCodes* find_gguf_codes(std::uint32_t id);

}  // namespace spear
