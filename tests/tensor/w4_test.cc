#include "tensor/w4.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tensor/dtype.h"

namespace spear {
namespace {

TEST(W4Scheme, ParsesExactlyItsNames) {
  EXPECT_EQ(parse_scheme("w4-channel-sym"), (W4Scheme{0, true}));
  EXPECT_EQ(parse_scheme("w4-channel-asym"), (W4Scheme{0, false}));
  for (const int group : {32, 64, 128}) {
    for (const bool symmetric : {true, false}) {
      const W4Scheme scheme{group, symmetric};
      EXPECT_EQ(to_string(scheme), "w4-g" + std::to_string(group) + (symmetric ? "-sym" : "-asym"));
      EXPECT_EQ(parse_scheme(to_string(scheme)), scheme);
    }
  }
  for (const char* bad : {"", "w4", "w4-g16-sym", "w4-channel", "W4-channel-sym", "w4-g128-sym ", "w4-g0128-sym"}) {
    EXPECT_THROW(parse_scheme(bad), Error) << bad;
  }
}

TEST(W4Matrix, EveryNibblePositionWithWidthsNotDivisibleBy8) {
  for (const std::int64_t cols : {1, 7, 8, 9, 13, 16, 33}) {
    const std::int64_t rows = 3;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 % 16);
    const std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows), f32_to_f16(0.5F));
    const W4Matrix matrix = pack_w4(rows, cols, {}, codes, scales);
    ASSERT_EQ(matrix.packed.size(), static_cast<std::size_t>(rows * ((cols + 7) / 8)));
    const auto values = matrix.dequantize();
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const int code = codes[static_cast<std::size_t>(row * cols + col)];
        ASSERT_EQ(matrix.code(row, col), code);
        ASSERT_EQ(values[static_cast<std::size_t>(row * cols + col)], 0.5F * static_cast<float>(code - 8));
      }
      for (std::int64_t col = cols; col < matrix.words_per_row() * 8; ++col)
        ASSERT_EQ(matrix.code(row, col), 8) << "padding";
    }
  }
}

TEST(W4Matrix, GroupsAndZeroPoints) {
  const std::int64_t rows = 2, cols = 70;  // groups of 32, 32 and 6
  const std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols), 11);
  std::vector<std::uint16_t> scales;
  for (int i = 1; i <= 6; ++i) scales.push_back(f32_to_f16(static_cast<float>(i)));
  const std::vector<std::uint8_t> zeros{0, 15, 8, 11, 10, 12};
  const W4Matrix matrix = pack_w4(rows, cols, {32, false}, codes, scales, zeros);
  EXPECT_EQ(matrix.groups(), 3);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const auto i = static_cast<std::size_t>(row * 3 + col / 32);
      ASSERT_EQ(matrix.value(row, col), static_cast<float>(i + 1) * static_cast<float>(11 - zeros[i]));
    }
  }
}

TEST(W4Matrix, StorageBytes) {
  W4Matrix matrix;
  matrix.rows = 576;
  matrix.cols = 1536;
  EXPECT_EQ(matrix.storage_bytes(), 576 * 1536 / 2 + 576 * 2);
  matrix.scheme = {128, false};
  EXPECT_EQ(matrix.storage_bytes(), 576 * 1536 / 2 + 576 * 12 * 2 + 576 * 12 / 2);
  matrix.cols = 13;
  matrix.rows = 3;
  matrix.scheme = {0, false};
  EXPECT_EQ(matrix.storage_bytes(), 3 * 8 + 3 * 2 + 2);
}

TEST(PackW4, RefusesSizesThatDisagree) {
  const std::vector<std::uint8_t> codes(16, 8), zeros(2, 8);
  const std::vector<std::uint16_t> scales(2, 0x3c00);
  EXPECT_NO_THROW(pack_w4(2, 8, {}, codes, scales));
  EXPECT_THROW(pack_w4(2, 9, {}, codes, scales), Error);
  EXPECT_THROW(pack_w4(2, 8, {0, false}, codes, scales), Error) << "zeros are missing";
  EXPECT_THROW(pack_w4(2, 8, {}, codes, scales, zeros), Error) << "symmetric has no zeros";
  EXPECT_THROW(pack_w4(2, 8, {}, codes, std::vector<std::uint16_t>(3)), Error);
}

}  // namespace
}  // namespace spear
