#include "ops/cpu/linear.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "ops/comparison.h"
#include "ops/cpu/matrix.h"
#include "ops/random_model.h"

namespace spear {
namespace {

using testing::as_matrix;
using testing::linear_error;
using testing::random_floats;
using testing::random_w4;

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

/// A weight in some storage format, with its exact values beside it.
struct Case {
  std::string name;
  LinearWeight weight;
  std::vector<std::int8_t> codes;        // i8 only
  std::vector<std::uint16_t> i8_scales;  // i8 only
  std::int64_t rows, cols;

  Matrix matrix() const { return codes.empty() ? Matrix(weight, name) : Matrix(codes, rows, cols, i8_scales); }
  RefMatrix values() const {
    if (codes.empty()) return ref::dequantize(weight);
    RefMatrix out(rows, cols);
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const float scale = f16_to_f32(i8_scales[static_cast<std::size_t>(i / cols)]);
      out.values[static_cast<std::size_t>(i)] = static_cast<float>(codes[static_cast<std::size_t>(i)]) * scale;
    }
    return out;
  }
};

std::vector<Case> cases(std::int64_t rows, std::int64_t cols) {
  std::vector<Case> out;
  for (const char* scheme : {"w4-channel-sym", "w4-channel-asym", "w4-g32-sym", "w4-g64-asym"}) {
    out.push_back({scheme, random_w4(rows, cols, parse_scheme(scheme), 7), {}, {}, rows, cols});
  }
  const Tensor dense = Tensor::from_floats({rows, cols}, random_floats(rows * cols, 8));
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    out.push_back({name(type), dense.to(type), {}, {}, rows, cols});
  }
  Case int8{"I8", Tensor(), {}, {}, rows, cols};
  quantize_rows_int8(random_floats(rows * cols, 9), rows, cols, int8.codes, int8.i8_scales);
  out.push_back(std::move(int8));
  return out;
}

class LinearTest : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels_ = *GetParam();
  ThreadPool pool_{2};

  std::vector<float> run(const Matrix& matrix, std::span<const float> x, std::int64_t m) {
    std::vector<float> y(static_cast<std::size_t>(m * matrix.view().rows), kPoison);
    const LinearJob job{&matrix.view(), y.data()};
    run_linears(pool_, kernels_, x.data(), m, {&job, 1});
    return y;
  }
};

TEST_P(LinearTest, MatchesTheReferenceForEveryFormatAndSize) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 7}, {5, 8}, {33, 37}, {31, 96}, {70, 129}, {64, 64}}) {
    for (const Case& c : cases(rows, cols)) {
      const Matrix matrix = c.matrix();
      const RefMatrix values = c.values();
      for (const std::int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 24, 25, 61}) {
        const auto x = random_floats(m * cols, 100 + static_cast<std::uint64_t>(m));
        const auto y = run(matrix, x, m);
        EXPECT_LE(linear_error(as_matrix(x, m, cols), values, y, rows), 1.0)
            << fmt::format("{} [{}, {}], {} tokens", c.name, rows, cols, m);
      }
    }
  }
}

TEST_P(LinearTest, LongRowsCrossTheDepthOfAPanel) {
  for (const Case& c : cases(9, 2083)) {
    for (const std::int64_t m : {1, 16, 17}) {
      const auto x = random_floats(m * 2083, 5);
      EXPECT_LE(linear_error(as_matrix(x, m, 2083), c.values(), run(c.matrix(), x, m), 9), 1.0) << c.name << " " << m;
    }
  }
}

TEST_P(LinearTest, OneHotInputsReturnTheDequantizedColumnsExactly) {
  constexpr std::int64_t kRows = 35, kCols = 45;
  for (const Case& c : cases(kRows, kCols)) {
    const RefMatrix values = c.values();
    for (const std::int64_t m : {std::int64_t{1}, kCols}) {  // by dot products and by panels
      for (std::int64_t first = 0; first < kCols; first += m) {
        std::vector<float> x(static_cast<std::size_t>(m * kCols));
        for (std::int64_t i = 0; i < m; ++i) x[static_cast<std::size_t>(i * kCols + first + i)] = 1.0F;
        const auto y = run(c.matrix(), x, m);
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t n = 0; n < kRows; ++n) {
            ASSERT_EQ(y[static_cast<std::size_t>(i * kRows + n)], values.at(n, first + i))
                << c.name << " row " << n << " column " << first + i;
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, ReadsAndWritesOnlyWhatBelongsToIt) {
  constexpr std::int64_t kRows = 37, kCols = 41, kPad = 5;
  for (const Case& c : cases(kRows, kCols)) {
    const Matrix matrix = c.matrix();
    for (const std::int64_t m : {1, 5, 17, 30}) {
      const std::int64_t ldx = kCols + kPad, ldy = kRows + kPad;
      const auto dense = random_floats(m * kCols, 11);
      std::vector<float> x(static_cast<std::size_t>(m * ldx), kPoison);
      std::vector<float> y(static_cast<std::size_t>(m * ldy), 12345.0F);
      for (std::int64_t i = 0; i < m; ++i) std::copy_n(dense.begin() + i * kCols, kCols, x.begin() + i * ldx);
      multiply_rows(kernels_, matrix.view(), 0, kRows, x.data(), ldx, m, y.data(), ldy, false);
      EXPECT_LE(linear_error(as_matrix(dense, m, kCols), c.values(), y, ldy), 1.0) << c.name << " " << m;
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t n = kRows; n < ldy; ++n) ASSERT_EQ(y[static_cast<std::size_t>(i * ldy + n)], 12345.0F);
      }
    }
  }
}

TEST_P(LinearTest, AccumulatesAndServesSeveralMatricesAtOnce) {
  constexpr std::int64_t kCols = 48;
  const W4Matrix first = random_w4(40, kCols, {}, 1), second = random_w4(7, kCols, {32, false}, 2);
  const Matrix a(first, "a"), b(second, "b");
  for (const std::int64_t m : {1, 19}) {
    const auto x = random_floats(m * kCols, 3);
    std::vector<float> ya(static_cast<std::size_t>(m * 40), 0.0F), yb(static_cast<std::size_t>(m * 7), kPoison);
    const LinearJob once[] = {{&a.view(), ya.data(), true}, {&b.view(), yb.data()}};
    run_linears(pool_, kernels_, x.data(), m, once);
    EXPECT_LE(linear_error(as_matrix(x, m, kCols), ref::dequantize(first), ya, 40), 1.0);
    EXPECT_LE(linear_error(as_matrix(x, m, kCols), ref::dequantize(second), yb, 7), 1.0);
    const auto single = ya;
    run_linears(pool_, kernels_, x.data(), m, {once, 1});
    for (std::size_t i = 0; i < ya.size(); ++i) ASSERT_EQ(ya[i], 2 * single[i]);
  }
}

TEST_P(LinearTest, TheComparisonSeesAPlantedFault) {
  constexpr std::int64_t kRows = 32, kCols = 64, kTokens = 3;
  const W4Matrix good = random_w4(kRows, kCols, {32, false}, 1);
  const auto x = random_floats(kTokens * kCols, 2);
  const auto error_of = [&](const W4Matrix& planted) {
    return linear_error(as_matrix(x, kTokens, kCols), ref::dequantize(good),
                        run(Matrix(planted, "planted"), x, kTokens), kRows);
  };
  EXPECT_LE(error_of(good), 1.0);
  W4Matrix nibbles = good;  // high and low nibble of each byte swapped
  for (auto& word : nibbles.packed) word = ((word & 0x0f0f0f0fU) << 4) | ((word & 0xf0f0f0f0U) >> 4);
  EXPECT_GT(error_of(nibbles), 100.0);
  W4Matrix zero = good;  // one zero point off by one
  zero.zeros[5] = static_cast<std::uint8_t>((zero.zeros[5] + 1) % 16);
  EXPECT_GT(error_of(zero), 100.0);
  W4Matrix scale = good;  // one scale off by its last bit
  scale.scales[7] ^= 1U;
  EXPECT_GT(error_of(scale), 100.0);
  std::vector<float> with_nan = run(Matrix(good, "good"), x, kTokens);
  with_nan[1] = kPoison;
  EXPECT_GT(linear_error(as_matrix(x, kTokens, kCols), ref::dequantize(good), with_nan, kRows), 1e30);
}

TEST(MatrixTest, RefusesSizesThatDoNotFit) {
  W4Matrix matrix = random_w4(4, 20, {}, 1);
  matrix.packed.pop_back();
  EXPECT_THROW(Matrix(matrix, "broken"), Error);
  matrix = random_w4(4, 40, {32, false}, 1);
  matrix.zeros.pop_back();
  EXPECT_THROW(Matrix(matrix, "broken"), Error);
  EXPECT_THROW(Matrix(Tensor(DType::i32, {2, 2}), "integers"), Error);
  EXPECT_THROW(Matrix(Tensor(DType::f32, {4}), "vector"), Error);
}

TEST(MatrixTest, CopiesATensorThatAFileHoldsAtAnOddAddress) {
  const auto values = random_floats(24, 4);
  auto bytes = std::make_shared<std::vector<std::byte>>(24 * sizeof(float) + 1);
  std::memcpy(bytes->data() + 1, values.data(), 24 * sizeof(float));
  const Matrix matrix(Tensor(DType::f32, {3, 8}, std::span(*bytes).subspan(1), bytes), "odd");
  std::vector<float> row(8);
  available_kernels().front()->read_row(matrix.view(), 2, 0, 8, row.data());
  EXPECT_EQ(row, std::vector<float>(values.begin() + 16, values.end()));
}

TEST(KernelsTest, EveryMachineHasTheGenericOnesAndAnUnknownNameIsRefused) {
  EXPECT_STREQ(available_kernels().back()->isa, "generic");
  EXPECT_EQ(&kernels_for("generic"), available_kernels().back());
  try {
    kernels_for("sse9");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(error.remedy().find("generic"), std::string::npos);
  }
}

TEST(KernelsTest, TheEnvironmentChooses) {
  ASSERT_EQ(setenv("SPEAR_FORCE_ISA", "generic", 1), 0);
  EXPECT_STREQ(default_kernels().isa, "generic");
  ASSERT_EQ(setenv("SPEAR_FORCE_ISA", "vax", 1), 0);
  EXPECT_THROW(default_kernels(), Error);
  ASSERT_EQ(unsetenv("SPEAR_FORCE_ISA"), 0);
  EXPECT_EQ(&default_kernels(), available_kernels().front());
}

INSTANTIATE_TEST_SUITE_P(Isa, LinearTest, ::testing::ValuesIn(available_kernels().begin(), available_kernels().end()),
                         [](const auto& info) { return std::string(info.param->isa); });

}  // namespace
}  // namespace spear
