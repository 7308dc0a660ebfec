// Part of packed_impl.h, whose rules apply: activations become integers, and the gates of compensators.
#pragma once

#include "ops/cpu/packed_kernels.h"
#include "ops/cpu/packed_simd.h"

namespace spear {
namespace {

constexpr std::int64_t kHalf = kActivationBlock / 2, kQuarter = kActivationBlock / 4;
static_assert(kQuarter == kSmallestGroup);

inline std::uint32_t bits_of(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

/// The scale of a block and its inverse. 16-bit codes have a power of two, so that quantizing is exact where it can be;
/// 8-bit codes use their whole range. Infinity and NaN make a NaN scale: they show in the result.
struct BlockScale {
  float scale, inverse;
};
inline BlockScale block_scale(const float* x, int planes) {
  std::int32_t largest = 0;  // of the absolute values' bits: these order like the values
  for (int i = 0; i < kActivationBlock; ++i) {
    const auto magnitude = static_cast<std::int32_t>(bits_of(x[i]) & 0x7fffffffU);
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= 0x7f800000) return {float_of(0x7fc00000U), 0.0F};
  if (planes == 1) {
    const float top = float_of(static_cast<std::uint32_t>(largest));
    return top < 0x1p-100F ? BlockScale{0.0F, 0.0F} : BlockScale{top / 127.0F, 127.0F / top};
  }
  std::int32_t exponent = largest >> 23;
  if ((largest & 0x7fffff) >= 0x7e0000) ++exponent;  // codes stay below 127 * 256: the upper plane is a signed byte
  if (exponent < 30) return {0.0F, 0.0F};
  return {float_of(static_cast<std::uint32_t>(exponent - 14) << 23),
          float_of(static_cast<std::uint32_t>(268 - exponent) << 23)};
}

/// One half of a block (32 columns); returns the sum of its codes.
inline std::int32_t quantize_half(const float* x, float inverse, std::int8_t* high, std::int8_t* low) {
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: the sum's low mantissa bits are the rounded integer
  std::int32_t sum = 0;
  for (int i = 0; i < kHalf; ++i) {
    const auto code = static_cast<std::int32_t>(bits_of(x[i] * inverse + kShift)) - 0x4b400000;
    sum += code;
    if (low == nullptr) {
      high[i] = static_cast<std::int8_t>(code);
    } else {
      const std::int32_t upper = (code + 128) >> 8;
      high[i] = static_cast<std::int8_t>(upper);
      low[i] = static_cast<std::int8_t>(code - (upper << 8));
    }
  }
  return sum;
}

/// Minus the sums of the four quarters of a block's codes.
inline void sum_quarters(const std::int8_t* high, const std::int8_t* low, std::int32_t* negative) {
  for (int quarter = 0; quarter < 4; ++quarter, high += kQuarter) {
    std::int32_t sum = 0;
    for (int i = 0; i < kQuarter; ++i) sum += high[i];
    if (low != nullptr) {
      sum *= 256;
      for (int i = 0; i < kQuarter; ++i) sum += low[quarter * kQuarter + i];
    }
    negative[quarter] = -sum;
  }
}

inline void round_to_bf16(const float* x, std::uint16_t* out) {
  for (int i = 0; i < kActivationBlock; ++i) {
    const std::uint32_t bits = bits_of(x[i]);
    const std::uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
    out[i] = static_cast<std::uint16_t>(((bits & 0x7fffffffU) > 0x7f800000U ? bits | 0x400000U : rounded) >> 16);
  }
}

void quantize(const float* x, std::int64_t n, std::int64_t row, const PackedActivations& out) {
  const std::int64_t blocks = out.depth / kActivationBlock;
  std::int8_t* const high = out.codes + row * out.planes * out.depth;
  std::int8_t* const low = out.planes == 2 ? high + out.depth : nullptr;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * kActivationBlock;
    const float* source = x + begin;
    float padded[kActivationBlock];
    if (begin + kActivationBlock > n) {
      for (std::int64_t i = 0; i < kActivationBlock; ++i) padded[i] = begin + i < n ? x[begin + i] : 0.0F;
      source = padded;
    }
    if (out.bf16 != nullptr) round_to_bf16(source, out.bf16 + row * out.depth + begin);
    if (out.planes == 0) continue;
    const auto [scale, inverse] = block_scale(source, out.planes);
    const std::int64_t at = row * blocks + block;
    out.scales[at] = scale;
    std::int32_t sum = 0;
    for (int half = 0; half < 2; ++half) {
      const std::int64_t first = begin + half * kHalf;
      const std::int32_t part =
          quantize_half(source + half * kHalf, inverse, high + first, low == nullptr ? nullptr : low + first);
      out.negative_halves[2 * at + half] = -part;
      sum += part;
    }
    out.negative_sums[at] = -sum;
    if (out.negative_quarters != nullptr) {
      sum_quarters(high + begin, low == nullptr ? nullptr : low + begin, out.negative_quarters + 4 * at);
    }
  }
}

/// e^x to 2 ulp on [-87, 88]; inputs outside are clamped. (Cephes' polynomial.)
inline Floats exponential(Floats x) {
  x = clamp(x, -87.0F, 88.0F);
  const Floats shift = broadcast_float(12582912.0F), minus_shift = broadcast_float(-12582912.0F);
  const Floats one = broadcast_float(1.0F);
  const Floats shifted = multiply_add(x, broadcast_float(1.44269504088896341F), shift);
  const Floats n = multiply_add(shifted, one, minus_shift);
  const Floats r = multiply_add(n, broadcast_float(2.12194440e-4F), multiply_add(n, broadcast_float(-0.693359375F), x));
  Floats p = broadcast_float(1.9875691500e-4F);
  for (const float c : {1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F}) {
    p = multiply_add(p, r, broadcast_float(c));
  }
  p = multiply_add(multiply(p, r), r, multiply_add(r, one, one));
  return multiply(p, power_of_two(shifted));
}

void weigh(const GateView& gate, const float* z, std::int64_t ldz, std::int64_t m, float* weighted) {
  const std::int64_t hidden = (gate.hidden + 15) / 16 * 16, rank = (gate.rank + 15) / 16 * 16;
  const Floats one = broadcast_float(1.0F);
  float activated[kMaxGateHidden];
  for (std::int64_t t = 0; t < m; ++t, z += ldz, weighted += gate.rank) {
    for (std::int64_t h = 0; h < hidden; h += 16) {
      Floats sum = load_floats(gate.b1 + h);
      for (std::int64_t i = 0; i < gate.inputs; ++i) {
        sum = multiply_add(load_floats(gate.w1 + i * hidden + h), broadcast_float(z[i]), sum);
      }
      const Floats e = exponential(multiply(sum, broadcast_float(-1.0F)));  // silu
      store(activated + h, divide(sum, multiply_add(e, one, one)));
    }
    for (std::int64_t r = 0; r < rank; r += 16) {
      Floats g = one;
      if (gate.hidden > 0) {
        Floats sum = load_floats(gate.b2 + r);
        for (std::int64_t h = 0; h < gate.hidden; ++h) {
          sum = multiply_add(load_floats(gate.w2 + h * rank + r), broadcast_float(activated[h]), sum);
        }
        const Floats e = exponential(multiply(sum, broadcast_float(2.0F)));  // 1 + tanh x = 2 - 2 / (e^2x + 1)
        g = multiply_add(broadcast_float(-2.0F), divide(one, multiply_add(e, one, one)), broadcast_float(2.0F));
      }
      float factors[16];
      store(factors, multiply(g, load_floats(gate.b_scales + r)));
      for (std::int64_t i = 0; i < 16 && r + i < gate.rank; ++i) weighted[r + i] = factors[i] * z[r + i];
    }
  }
}

}  // namespace
}  // namespace spear
