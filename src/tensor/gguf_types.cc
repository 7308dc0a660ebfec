#include "tensor/gguf_types.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tensor/dtype.h"

namespace spear {
namespace {

using Bytes = std::span<const std::byte>;
using Floats = std::span<float>;

unsigned byte_at(const std::byte* bytes, std::size_t i) { return std::to_integer<unsigned>(bytes[i]); }
int signed_at(const std::byte* bytes, std::size_t i) {
  return static_cast<std::int8_t>(std::to_integer<unsigned char>(bytes[i]));
}
std::uint16_t u16_at(const std::byte* bytes) {
  std::uint16_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}
float half_at(const std::byte* bytes) { return f16_to_f32(u16_at(bytes)); }

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

void q4_1(Bytes bytes, Floats out) {
  for_each_block<20, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    const float m = half_at(in + 2);
    for (std::size_t i = 0; i < 16; ++i) {
      const unsigned pair = byte_at(in + 4, i);
      w[i] = d * static_cast<float>(pair & 0xf) + m;
      w[i + 16] = d * static_cast<float>(pair >> 4) + m;
    }
  });
}

/// Five-bit code of weight i < 32: nibble as in Q4_0, bit i of the 32 fifth bits on top.
int five_bits(const std::byte* high, const std::byte* nibbles, std::size_t i) {
  const unsigned pair = byte_at(nibbles, i % 16);
  const unsigned low = i < 16 ? pair & 0xf : pair >> 4;
  return static_cast<int>(low | ((byte_at(high, i / 8) >> (i % 8)) & 1U) << 4);
}

void q5_0(Bytes bytes, Floats out) {
  for_each_block<22, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    for (std::size_t i = 0; i < 32; ++i) w[i] = d * static_cast<float>(five_bits(in + 2, in + 6, i) - 16);
  });
}

void q5_1(Bytes bytes, Floats out) {
  for_each_block<24, 32>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in);
    const float m = half_at(in + 2);
    for (std::size_t i = 0; i < 32; ++i) w[i] = d * static_cast<float>(five_bits(in + 4, in + 8, i)) + m;
  });
}

struct ScaleAndMin {
  float scale, min;
};

/// Six-bit scale and minimum of sub-block j < 8, times the block's d and dmin. Sub-blocks 0-3 lie in the low six bits
/// of bytes j and j + 4; 4-7 have four bits in byte j + 4 and their top two above those of the first.
ScaleAndMin k_scale(const std::byte* block, std::size_t j) {
  const float d = half_at(block);
  const float dmin = half_at(block + 2);
  const std::byte* packed = block + 4;
  unsigned scale = byte_at(packed, j % 4) & 63U;
  unsigned min = byte_at(packed, j % 4 + 4) & 63U;
  if (j >= 4) {
    const unsigned low = byte_at(packed, j + 4);
    scale = (low & 0xfU) | (byte_at(packed, j - 4) >> 6) << 4;
    min = (low >> 4) | (byte_at(packed, j) >> 6) << 4;
  }
  return {d * static_cast<float>(scale), dmin * static_cast<float>(min)};
}

// Sub-blocks 2c and 2c + 1 are the low and the high nibbles of the same 32 bytes.
void q4_k(Bytes bytes, Floats out) {
  for_each_block<144, 256>(bytes, out, [](const std::byte* in, float* w) {
    for (std::size_t j = 0; j < 8; ++j) {
      const auto [scale, min] = k_scale(in, j);
      for (std::size_t i = 0; i < 32; ++i) {
        const unsigned q = byte_at(in + 16, j / 2 * 32 + i) >> (j % 2 * 4) & 0xfU;
        w[j * 32 + i] = scale * static_cast<float>(q) - min;
      }
    }
  });
}

void q5_k(Bytes bytes, Floats out) {
  for_each_block<176, 256>(bytes, out, [](const std::byte* in, float* w) {
    for (std::size_t j = 0; j < 8; ++j) {
      const auto [scale, min] = k_scale(in, j);
      for (std::size_t i = 0; i < 32; ++i) {
        const unsigned low = byte_at(in + 48, j / 2 * 32 + i) >> (j % 2 * 4) & 0xfU;
        const unsigned q = low | (byte_at(in + 16, i) >> j & 1U) << 4;
        w[j * 32 + i] = scale * static_cast<float>(q) - min;
      }
    }
  });
}

// Two halves of 128 weights; in each, 64 bytes of low nibbles and 32 bytes that hold the top two bits of four weights.
void q6_k(Bytes bytes, Floats out) {
  for_each_block<210, 256>(bytes, out, [](const std::byte* in, float* w) {
    const float d = half_at(in + 208);
    for (std::size_t i = 0; i < 256; ++i) {
      const std::size_t half = i / 128;
      const std::size_t quarter = i % 128 / 32;
      const unsigned low = byte_at(in + half * 64, quarter % 2 * 32 + i % 32) >> (quarter / 2 * 4) & 0xfU;
      const unsigned high = byte_at(in + 128 + half * 32, i % 32) >> (quarter * 2) & 3U;
      const float scale = d * static_cast<float>(signed_at(in + 192, i / 16));
      w[i] = scale * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    }
  });
}

// Types without a function are known so that an error can name them.
constexpr std::array kTypes = {
    GgufType{0, "F32", 1, 4, f32},
    GgufType{1, "F16", 1, 2, f16},
    GgufType{2, "Q4_0", 32, 18, q4_0, 0},
    GgufType{3, "Q4_1", 32, 20, q4_1, 0, 2},
    GgufType{6, "Q5_0", 32, 22, q5_0, 0},
    GgufType{7, "Q5_1", 32, 24, q5_1, 0, 2},
    GgufType{8, "Q8_0", 32, 34, q8_0, 0},
    GgufType{9, "Q8_1", 32, 40},
    GgufType{10, "Q2_K", 256, 84},
    GgufType{11, "Q3_K", 256, 110},
    GgufType{12, "Q4_K", 256, 144, q4_k, 0, 2},
    GgufType{13, "Q5_K", 256, 176, q5_k, 0, 2},
    GgufType{14, "Q6_K", 256, 210, q6_k, 208},
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
};

}  // namespace

const GgufType* find_gguf_type(std::uint32_t id) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(), [id](const GgufType& type) { return type.id == id; });
  return found == kTypes.end() ? nullptr : found;
}

}  // namespace spear
