#include "io/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/dtype.h"

namespace spear {
namespace {

constexpr std::int64_t kBlock = 32;
constexpr std::size_t kQ4_0Bytes = 18, kQ5_0Bytes = 22;

/// Low nibbles are weights 0-15 of the block, high nibbles weights 16-31.
void put_nibbles(std::span<const std::uint8_t, kBlock> codes, std::byte* out) {
  for (std::size_t i = 0; i < kBlock / 2; ++i) {
    out[i] = static_cast<std::byte>((codes[i] & 0xfU) | (codes[i + kBlock / 2] & 0xfU) << 4);
  }
}

}  // namespace

void encode_w4_row(const W4Matrix& matrix, std::int64_t row, std::span<std::byte> out) {
  const bool symmetric = matrix.scheme.symmetric;
  const std::size_t block_bytes = symmetric ? kQ4_0Bytes : kQ5_0Bytes;
  std::array<std::uint8_t, kBlock> codes;
  for (std::int64_t block = 0; block < matrix.cols / kBlock; ++block) {
    std::byte* to = out.data() + static_cast<std::size_t>(block) * block_bytes;
    const std::int64_t group = matrix.group_of(block * kBlock);
    const std::uint16_t d = matrix.scales[static_cast<std::size_t>(row * matrix.groups() + group)];
    std::memcpy(to, &d, sizeof d);
    std::uint32_t fifth_bits = 0;
    for (std::int64_t i = 0; i < kBlock; ++i) {
      const int code = matrix.code(row, block * kBlock + i) + (symmetric ? 0 : 16 - matrix.zero(row, group));
      codes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(code);
      fifth_bits |= static_cast<std::uint32_t>(code >> 4) << i;
    }
    if (!symmetric) std::memcpy(to + 2, &fifth_bits, sizeof fifth_bits);
    put_nibbles(codes, to + block_bytes - kBlock / 2);
  }
}

W4Matrix decode_q4_0(std::span<const std::byte> blocks, const Shape& shape,
                     const std::function<std::int64_t(std::int64_t)>& target_row) {
  const std::int64_t rows = shape[0], cols = shape[1], per_row = cols / kBlock;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows * per_row));
  for (std::int64_t i = 0; i < rows * per_row; ++i) {
    const std::byte* block = blocks.data() + static_cast<std::size_t>(i) * kQ4_0Bytes;
    const std::int64_t at = target_row(i / per_row) * per_row + i % per_row;
    std::memcpy(&scales[static_cast<std::size_t>(at)], block, sizeof(std::uint16_t));
    for (std::int64_t j = 0; j < kBlock / 2; ++j) {
      const auto pair = std::to_integer<std::uint8_t>(block[2 + j]);
      codes[static_cast<std::size_t>(at * kBlock + j)] = pair & 0xfU;
      codes[static_cast<std::size_t>(at * kBlock + j + kBlock / 2)] = pair >> 4;
    }
  }
  return pack_w4(rows, cols, {kBlock, true}, codes, scales);
}

void encode_q8_0(std::span<const float> values, std::span<std::byte> out) {
  for (std::size_t block = 0; block < values.size() / kBlock; ++block) {
    const auto in = values.subspan(block * kBlock, kBlock);
    std::byte* to = out.data() + block * (2 + kBlock);
    float largest = 0;
    for (const float v : in) largest = std::max(largest, std::abs(v));
    const std::uint16_t bits = f32_to_f16(largest / 127.0F);
    const float d = f16_to_f32(bits);
    std::memcpy(to, &bits, sizeof bits);
    for (std::size_t i = 0; i < kBlock; ++i) {
      const float q = d > 0 ? std::clamp(std::nearbyint(in[i] / d), -127.0F, 127.0F) : 0.0F;
      to[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(q));
    }
  }
}

}  // namespace spear
