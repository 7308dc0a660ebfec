#include "tensor/gguf_codes.h"

#include <algorithm>
#include <array>

#include "tensor/gguf_bytes.h"

namespace spear {
namespace {

// Low nibbles are weights 0-15 of the block, high nibbles weights 16-31.
void q4_1(const std::byte* block, std::uint8_t* codes, float* scales, float* minima) {
  *scales = half_at(block);
  *minima = -half_at(block + 2);
  for (std::size_t i = 0; i < 32; ++i) codes[i] = static_cast<std::uint8_t>(byte_at(block + 4, i % 16) >> (i / 16 * 4) & 0xfU);
}

void q5_1(const std::byte* block, std::uint8_t* codes, float* scales, float* minima) {
  *scales = half_at(block);
  *minima = -half_at(block + 2);
  for (std::size_t i = 0; i < 32; ++i) codes[i] = static_cast<std::uint8_t>(five_bits(block + 4, block + 8, i));
}

/// Six-bit scale and minimum of sub-block j < 8, times the block's d and dmin. Sub-blocks 0-3 lie in the low six bits
/// of bytes j and j + 4; 4-7 have four bits in byte j + 4 and their top two above those of the first.
void k_scale(const std::byte* block, std::size_t j, float& scale, float& minimum) {
  const std::byte* packed = block + 4;
  unsigned s = byte_at(packed, j % 4) & 63U;
  unsigned m = byte_at(packed, j % 4 + 4) & 63U;
  if (j >= 4) {
    const unsigned low = byte_at(packed, j + 4);
    s = (low & 0xfU) | (byte_at(packed, j - 4) >> 6) << 4;
    m = (low >> 4) | (byte_at(packed, j) >> 6) << 4;
  }
  scale = half_at(block) * static_cast<float>(s);
  minimum = half_at(block + 2) * static_cast<float>(m);
}

// Sub-blocks 2c and 2c + 1 are the low and the high nibbles of the same 32 bytes; Q5_K has its fifth bits before them, those of
// sub-block j in bit j.
template <bool kFifthBits>
void q_k(const std::byte* block, std::uint8_t* codes, float* scales, float* minima) {
  const std::byte* const nibbles = block + (kFifthBits ? 48 : 16);
  for (std::size_t j = 0; j < 8; ++j) {
    k_scale(block, j, scales[j], minima[j]);
    for (std::size_t i = 0; i < 32; ++i) {
      unsigned code = byte_at(nibbles, j / 2 * 32 + i) >> (j % 2 * 4) & 0xfU;
      if constexpr (kFifthBits) code |= (byte_at(block + 16, i) >> j & 1U) << 4;
      codes[j * 32 + i] = static_cast<std::uint8_t>(code);
    }
  }
}

// Two halves of 128 weights; in each, 64 bytes of low nibbles and 32 bytes that hold the top two bits of four weights.
void q6_k(const std::byte* block, std::uint8_t* codes, float* scales, float* minima) {
  const float d = half_at(block + 208);
  for (std::size_t group = 0; group < 16; ++group) {
    scales[group] = d * static_cast<float>(signed_at(block + 192, group));
    minima[group] = 0;
  }
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t half = i / 128;
    const std::size_t quarter = i % 128 / 32;
    const unsigned low = byte_at(block + half * 64, quarter % 2 * 32 + i % 32) >> (quarter / 2 * 4) & 0xfU;
    const unsigned high = byte_at(block + 128 + half * 32, i % 32) >> (quarter * 2) & 3U;
    codes[i] = static_cast<std::uint8_t>(low | high << 4);
  }
}

constexpr std::array kTypes = {GgufCodes{3, 4, 32, 20, 32, 0, q4_1}, GgufCodes{7, 5, 32, 24, 32, 0, q5_1},
                               GgufCodes{12, 4, 256, 144, 32, 0, q_k<false>}, GgufCodes{13, 5, 256, 176, 32, 0, q_k<true>},
                               GgufCodes{14, 6, 256, 210, 16, 32, q6_k}};

}  // namespace

const GgufCodes* find_gguf_codes(std::uint32_t id) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(), [id](const GgufCodes& type) { return type.id == id; });
  return found == kTypes.end() ? nullptr : found;
}

}  // namespace spear
