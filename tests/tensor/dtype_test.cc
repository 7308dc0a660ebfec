// Conversions against an independent reference in double precision, over every 16-bit pattern.
#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace spear {
namespace {

struct Format {
  int exponent_bits, mantissa_bits;
  float (*decode)(std::uint16_t);
  std::uint16_t (*encode)(float);

  std::uint16_t infinity() const { return static_cast<std::uint16_t>(((1U << exponent_bits) - 1) << mantissa_bits); }
  /// Value of a finite pattern, from the definition of the format.
  double value(unsigned bits) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const double mantissa = static_cast<double>(bits & ((1U << mantissa_bits) - 1));
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                      : std::ldexp(mantissa + std::ldexp(1.0, mantissa_bits), exponent - bias - mantissa_bits);
    return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
  }
};

const Format kHalf{5, 10, f16_to_f32, f32_to_f16};
const Format kBrain{8, 7, bf16_to_f32, f32_to_bf16};

class SixteenBit : public testing::TestWithParam<Format> {};

TEST_P(SixteenBit, DecodesEveryPattern) {
  const Format& format = GetParam();
  for (unsigned bits = 0; bits < 0x10000U; ++bits) {
    const float value = format.decode(static_cast<std::uint16_t>(bits));
    const unsigned magnitude = bits & 0x7fffU;
    if (magnitude > format.infinity()) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(format.decode(format.encode(value)))) << bits;
    } else if (magnitude == format.infinity()) {
      ASSERT_EQ(value, (bits & 0x8000U) != 0 ? -INFINITY : INFINITY);
    } else {
      ASSERT_EQ(static_cast<double>(value), format.value(bits)) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000U) != 0) << bits;
    }
    if (magnitude <= format.infinity()) {
      ASSERT_EQ(format.encode(value), bits);
    }
  }
}

// Between neighbours a < b: below the midpoint a, above it b, at it the even one. The last pair overflows to infinity.
TEST_P(SixteenBit, RoundsToNearestEvenBetweenAllNeighbours) {
  const Format& format = GetParam();
  for (unsigned low = 0; low < format.infinity(); ++low) {
    const double a = format.value(low);
    const double b = low + 1 == format.infinity() ? a + (a - format.value(low - 1)) : format.value(low + 1);
    const double exact = (a + b) / 2;
    const auto middle = static_cast<float>(exact);
    const auto even = static_cast<std::uint16_t>(low + (low & 1U));
    for (const unsigned sign : {0U, 0x8000U}) {
      const float s = sign != 0 ? -1.0F : 1.0F;
      if (static_cast<double>(middle) == exact) {
        ASSERT_EQ(format.encode(s * middle), sign | even) << low;
      }
      ASSERT_EQ(format.encode(s * std::nextafter(middle, 0.0F)), sign | low) << low;
      ASSERT_EQ(format.encode(s * std::nextafter(middle, INFINITY)), sign | (low + 1)) << low;
    }
  }
}

TEST_P(SixteenBit, Extremes) {
  const Format& format = GetParam();
  EXPECT_EQ(format.encode(INFINITY), format.infinity());
  EXPECT_EQ(format.encode(-INFINITY), 0x8000U | format.infinity());
  EXPECT_EQ(format.encode(std::numeric_limits<float>::max()), format.infinity());
  EXPECT_EQ(format.encode(-0.0F), 0x8000U);
  EXPECT_TRUE(std::isnan(format.decode(format.encode(std::nanf("")))));
}

INSTANTIATE_TEST_SUITE_P(Formats, SixteenBit, testing::Values(kHalf, kBrain),
                         [](const auto& info) { return info.param.exponent_bits == 5 ? "f16" : "bf16"; });

/// Case by case, as the format is described.
float textbook_f16(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000U) << 16, exponent = (h >> 10) & 0x1fU, mantissa = h & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

TEST(Dtype, HalvesWithoutBranchesAreTheSameHalves) {
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const auto bits = static_cast<std::uint16_t>(h);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(f16_to_f32(bits)), std::bit_cast<std::uint32_t>(textbook_f16(bits))) << h;
  }
}

}  // namespace
}  // namespace spear
