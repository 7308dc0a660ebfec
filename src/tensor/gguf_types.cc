#include "tensor/gguf_types.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tensor/dtype.h"
#include "tensor/gguf_bytes.h"
#include "tensor/gguf_codes.h"

namespace spear {
namespace {

using Bytes = std::span<const std::byte>;
using Floats = std::span<float>;

/// Calls block(bytes, out) for every block of `block_bytes` bytes and `block_size` weights.
template <std::size_t block_bytes, std::size_t block_size, class Block>
void for_each_block(Bytes bytes, Floats out, Block block) {
  const std::size_t count = std::min(bytes.size() / block_bytes, out.size() / block_size);
  for (std::size_t i = 0; i < count; ++i) block(bytes.data() + i * block_bytes, out.data() + i * block_size);
}

void f32(Bytes bytes, Floats out) { std::memcpy(out.data(), bytes.data(), std::min(bytes.size(), out.size_bytes())); }
void f16(Bytes bytes, Floats out) {
  for_each_block<2, 1>(bytes, out, [](const std::byte* in, float* w) { *w = half_at(in); });
}
void bf16(Bytes bytes, Floats out) {
  for_each_block<2, 1>(bytes, out, [](const std::byte* in, float* w) { *w = bf16_to_f32(u16_at(in)); });
}

void q8_0(Bytes bytes, Floats out) {
  for_each_block<34, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    for (std::size_t i = 0; i < 32; ++i) w[i] = static_cast<float>(signed_at(in + 2, i)) * d;
  });
}

// Low nibbles are weights 0-15 of the block, high nibbles weights 16-31.
void q4_0(Bytes bytes, Floats out) {
  for_each_block<18, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    for (std::size_t i = 0; i < 16; ++i) {
      const int pair = static_cast<int>(byte_at(in + 2, i));
      w[i] = d * static_cast<float>((pair & 0xf) - 8);
      w[i + 16] = d * static_cast<float>((pair >> 4) - 8);
    }
  });
}

void q5_0(Bytes bytes, Floats out) {
  for_each_block<22, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    for (std::size_t i = 0; i < 32; ++i) w[i] = d * static_cast<float>(five_bits(in + 2, in + 6, i) - 16);
  });
}

/// Of ik_llama.cpp, which takes it for rows that are not whole K-blocks: the upper two bits of weights i, i + 16, i + 8 and i + 24
/// share a byte, in this order from the lowest.
void q6_0(Bytes bytes, Floats out) {
  static constexpr unsigned kShift[] = {0, 4, 2, 6};
  for_each_block<26, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    for (std::size_t i = 0; i < 32; ++i) {
      const unsigned low = byte_at(in + 10, i % 16) >> (i / 16 * 4) & 0xfU;
      const unsigned high = byte_at(in + 2, i % 8) >> kShift[i / 8] & 3U;
      w[i] = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    }
  });
}

/// Of a type of codes, scales and minima.
template <std::uint32_t kId>
void from_codes(Bytes bytes, Floats out) {
  constexpr std::size_t kLargestBlock = 256;
  static const GgufCodes& type = *find_gguf_codes(kId);
  const auto block_bytes = static_cast<std::size_t>(type.block_bytes), block_size = static_cast<std::size_t>(type.block_size);
  const std::size_t count = std::min(bytes.size() / block_bytes, out.size() / block_size);
  std::uint8_t codes[kLargestBlock];
  float scales[kLargestBlock / kSmallestGgufGroup], minima[kLargestBlock / kSmallestGgufGroup];
  for (std::size_t block = 0; block < count; ++block) {
    type.unpack(bytes.data() + block * block_bytes, codes, scales, minima);
    for (std::size_t i = 0; i < block_size; ++i) {
      const std::size_t group = i / static_cast<std::size_t>(type.group);
      out[block * block_size + i] = scales[group] * static_cast<float>(codes[i] - type.zero) - minima[group];
    }
  }
}

// Types without a function are known so that an error can name them.
constexpr std::array kTypes = {
    GgufType{0, "F32", 1, 4, f32},
    GgufType{1, "F16", 1, 2, f16},
    GgufType{2, "Q4_0", 32, 18, q4_0, 0},
    GgufType{3, "Q4_1", 32, 20, from_codes<3>, 0, 2},
    GgufType{6, "Q5_0", 32, 22, q5_0, 0},
    GgufType{7, "Q5_1", 32, 24, from_codes<7>, 0, 2},
    GgufType{8, "Q8_0", 32, 34, q8_0, 0},
    GgufType{9, "Q8_1", 32, 40},
    GgufType{10, "Q2_K", 256, 84},
    GgufType{11, "Q3_K", 256, 110},
    GgufType{12, "Q4_K", 256, 144, from_codes<12>, 0, 2},
    GgufType{13, "Q5_K", 256, 176, from_codes<13>, 0, 2},
    GgufType{14, "Q6_K", 256, 210, from_codes<14>, 208},
    GgufType{15, "Q8_K", 256, 292},
    GgufType{16, "IQ2_XXS", 256, 66},
    GgufType{17, "IQ2_XS", 256, 74},
    GgufType{18, "IQ3_XXS", 256, 98},
    GgufType{19, "IQ1_S", 256, 50},
    GgufType{20, "IQ4_NL", 32, 18},
    GgufType{21, "IQ3_S", 256, 110},
    GgufType{22, "IQ2_S", 256, 82},
    GgufType{23, "IQ4_XS", 256, 136},
    GgufType{24, "I8", 1, 1},
    GgufType{25, "I16", 1, 2},
    GgufType{26, "I32", 1, 4},
    GgufType{27, "I64", 1, 8},
    GgufType{28, "F64", 1, 8},
    GgufType{29, "IQ1_M", 256, 56},
    GgufType{30, "BF16", 1, 2, bf16},
    GgufType{34, "TQ1_0", 256, 54},
    GgufType{35, "TQ2_0", 256, 66},
    GgufType{39, "MXFP4", 32, 17},
    GgufType{40, "NVFP4", 64, 36},
    GgufType{41, "Q1_0", 128, 18},
    GgufType{133, "Q6_0", 32, 26, q6_0, 0},
};

}  // namespace

const GgufType* find_gguf_type(std::uint32_t id) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(), [id](const GgufType& type) { return type.id == id; });
  return found == kTypes.end() ? nullptr : found;
}

}  // namespace spear
