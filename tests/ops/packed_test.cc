#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops/comparison.h"
#include "ops/cpu/fused_linear.h"
#include "ops/random_model.h"
#include "tensor/gguf_codes.h"

namespace spear {
namespace {

using testing::as_matrix;
using testing::linear_error;
using testing::random_compensator;
using testing::random_floats;
using testing::random_input;
using testing::random_w4;

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();
constexpr const char* kSchemes[] = {"w4-channel-sym", "w4-channel-asym", "w4-g32-sym",  "w4-g32-asym",
                                    "w4-g64-sym",     "w4-g64-asym",     "w4-g128-sym", "w4-g128-asym"};

RefMatrix values_of(const PackedView& view) {
  RefMatrix out(view.rows, view.cols);
  std::vector<float> row(static_cast<std::size_t>(view.cols));
  for (std::int64_t i = 0; i < view.rows; ++i) {
    unpack_row(view, i, row.data());
    std::copy(row.begin(), row.end(), out.values.begin() + i * view.cols);
  }
  return out;
}

/// Buffers of PackedActivations for m rows, poisoned.
struct ActivationBuffers {
  ActivationBuffers(std::int64_t m, std::int64_t cols, int planes, bool bf16)
      : depth((cols + 63) / 64 * 64),
        codes(static_cast<std::size_t>(m * planes * depth), 99),
        half_bits(static_cast<std::size_t>(bf16 ? m * depth : 0), 0x7fc0),
        scales(static_cast<std::size_t>(m * depth / 64), kPoison),
        sums(static_cast<std::size_t>(m * depth / 64), 12345),
        halves(static_cast<std::size_t>(m * depth / 32), 12345),
        quarters(static_cast<std::size_t>(m * depth / 16), 12345) {
    view = {planes,        depth,         codes.data(), scales.data(), sums.data(),
            halves.data(), bf16 ? half_bits.data() : nullptr, quarters.data()};
  }
  /// What the codes stand for.
  float value(std::int64_t row, std::int64_t col) const {
    const auto at = [&](int plane) {
      return static_cast<int>(codes[static_cast<std::size_t>((row * view.planes + plane) * depth + col)]);
    };
    const int code = view.planes == 1 ? at(0) : 256 * at(0) + at(1);
    return static_cast<float>(code) * scales[static_cast<std::size_t>(row * depth / 64 + col / 64)];
  }

  std::int64_t depth;
  std::vector<std::int8_t> codes;
  std::vector<std::uint16_t> half_bits;
  std::vector<float> scales;
  std::vector<std::int32_t> sums, halves, quarters;
  PackedActivations view;
};

class PackedTest : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const PackedKernels& kernels_ = packed_kernels(*GetParam());
  ThreadPool pool_{2};
  WeightArena arena_;
  PackContext context_{pool_, arena_};

  std::vector<float> run(const PackedView& weight, Activations activations, std::span<const float> x, std::int64_t m) {
    std::vector<float> y(static_cast<std::size_t>(m * weight.rows), kPoison);
    FusedLinear fused(kernels_, pool_);
    const FusedJob job{&weight, y.data()};
    fused.run(activations, x.data(), m, {&job, 1}, {});
    return y;
  }

  /// The activations that kernels see, as float64.
  RefMatrix seen(Activations activations, const PackedView& weight, std::span<const float> x, std::int64_t m) {
    RefMatrix out(m, weight.cols);
    const int planes = activations == Activations::a8 ? 1 : 2;
    ActivationBuffers buffers(m, weight.cols, planes, weight.kind == PackedKind::bf16);
    for (std::int64_t i = 0; i < m; ++i) kernels_.quantize(x.data() + i * weight.cols, weight.cols, i, buffers.view);
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < weight.cols; ++j) {
        out.at(i, j) = weight.kind == PackedKind::bf16
                           ? bf16_to_f32(buffers.half_bits[static_cast<std::size_t>(i * buffers.depth + j)])
                           : buffers.value(i, j);
      }
    }
    return out;
  }
};

std::vector<PackedMatrix> matrices(std::int64_t rows, std::int64_t cols, const PackContext& context) {
  std::vector<PackedMatrix> out;
  for (const char* scheme : kSchemes) {
    out.push_back(PackedMatrix::from_w4(random_w4(rows, cols, parse_scheme(scheme), 7), scheme, context));
  }
  W4Matrix regrouped = random_w4(rows, cols, {32, false}, 7);
  testing::shuffle_groups(regrouped, 5);
  out.push_back(PackedMatrix::from_w4(regrouped, "regrouped", context));
  if (cols % 32 == 0) {
    for (const char* type : {"Q8_0", "Q6_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"}) {
      out.push_back(PackedMatrix::from_blocks(testing::random_blocks(rows, cols, type, 6), type, context));
    }
  }
  if (cols % 256 == 0) {
    for (const char* type : {"Q4_K", "Q5_K", "Q6_K"}) {
      out.push_back(PackedMatrix::from_blocks(testing::random_blocks(rows, cols, type, 6), type, context));
    }
  }
  const Tensor dense = Tensor::from_floats({rows, cols}, random_floats(rows * cols, 8));
  for (const HeadType type : {HeadType::int8, HeadType::bf16, HeadType::w4}) {
    out.push_back(PackedMatrix::head(dense, type, "head", context));
  }
  std::vector<std::int8_t> codes;
  std::vector<std::uint16_t> scales;
  quantize_rows_int8(random_floats(rows * cols, 9), rows, cols, codes, scales);
  out.push_back(PackedMatrix::from_int8(codes, rows, cols, scales, context));
  return out;
}

TEST_P(PackedTest, UnpackedRowsAreTheWeights) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {17, 37}, {33, 200}}) {
    for (const char* scheme : kSchemes) {
      const W4Matrix source = random_w4(rows, cols, parse_scheme(scheme), 7);
      EXPECT_EQ(values_of(PackedMatrix::from_w4(source, scheme, context_).view()).values,
                ref::dequantize(source).values);
    }
    const Tensor dense = Tensor::from_floats({rows, cols}, random_floats(rows * cols, 8)).to(DType::bf16);
    EXPECT_EQ(values_of(PackedMatrix::to_bf16(dense, "", context_).view()).values, ref::dequantize(dense).values);
  }
}

TEST_P(PackedTest, UnpackedRowsOfRegroupedWeightsAreSortedByGroup) {
  W4Matrix source = random_w4(33, 200, {64, false}, 7);
  testing::shuffle_groups(source, 3);
  const auto order = source.columns_by_group();
  const RefMatrix found = values_of(PackedMatrix::from_w4(source, "", context_).view()),
                  expected = ref::dequantize(source);
  ASSERT_EQ(order.size(), 200U);
  for (std::int64_t row = 0; row < 33; ++row) {
    for (std::int64_t i = 0; i < 200; ++i) {
      ASSERT_EQ(found.at(row, i), expected.at(row, order[static_cast<std::size_t>(i)])) << row << " " << i;
    }
  }
}

/// Into what a K-type's scales and minima become: integers times an F16 number need up to 17 bits.
void round_scales_to_f16(const BlockMatrix& source, RefMatrix& values) {
  const GgufCodes& type = *find_gguf_codes(source.type->id);
  std::uint8_t codes[256];
  float scales[16], minima[16];
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(values.values.size()); ++i) {
    if (i % 256 == 0) type.unpack(source.blocks.data() + i / 256 * type.block_bytes, codes, scales, minima);
    const auto half = [](float v) { return f16_to_f32(f32_to_f16(v)); };
    const float scale = scales[i % 256 / type.group], minimum = minima[i % 256 / type.group];
    const float rounded = half(scale) * static_cast<float>(codes[i % 256] - type.zero) - half(minimum);
    const float slack = 0x1p-11F * (std::abs(scale) * 32 + std::abs(minimum));
    EXPECT_NEAR(values.values[static_cast<std::size_t>(i)], rounded, 1.01F * slack);
    values.values[static_cast<std::size_t>(i)] = rounded;
  }
}

TEST_P(PackedTest, ScalesBeyondF16AreRoundedWithTheirWeights) {
  BlockMatrix source = testing::random_blocks(3, 256, "Q4_K", 11);
  const std::uint16_t large = f32_to_f16(60000);  // times a 6-bit integer
  std::memcpy(source.blocks.data() + source.row_bytes(), &large, sizeof large);
  const PackedMatrix packed = PackedMatrix::from_blocks(source, "Q4_K", context_);
  EXPECT_EQ(packed.view().kind, PackedKind::bf16);
}

TEST_P(PackedTest, UnpackedRowsOfBlocksAreTheWeights) {
  for (const char* type : {"Q4_0", "Q5_0", "Q6_0", "Q8_0", "Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q6_K"}) {
    const std::int64_t cols = std::string_view(type).ends_with("_K") ? 512 : 96;
    const BlockMatrix source = testing::random_blocks(37, cols, type, 11);
    const PackedMatrix packed = PackedMatrix::from_blocks(source, type, context_);
    RefMatrix expected = ref::dequantize(source);
    const std::string_view name = type;
    EXPECT_EQ(packed.view().kind, name == "Q4_1" || name == "Q4_K" ? PackedKind::w4 : PackedKind::w8) << type;
    EXPECT_EQ(packed.view().group_size, name == "Q6_K" ? 16 : 32) << type;
    if (name.ends_with("_K")) round_scales_to_f16(source, expected);
    EXPECT_EQ(values_of(packed.view()).values, expected.values) << type;
  }
}

TEST_P(PackedTest, MatchesTheReferenceForEveryFormatAndSize) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 7}, {16, 64}, {17, 65}, {33, 37}, {47, 129}, {64, 192}, {35, 256}}) {
    for (const PackedMatrix& matrix : matrices(rows, cols, context_)) {
      const RefMatrix values = values_of(matrix.view());
      for (const std::int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 25, 31, 32, 33, 64, 65}) {
        const auto x = random_floats(m * cols, 100 + static_cast<std::uint64_t>(m));
        for (const auto activations : {Activations::a8, Activations::a16}) {
          const auto y = run(matrix.view(), activations, x, m);
          // Beside the k roundings of the sum: those of the integer, of the scales' product, of the row scale.
          const double limit = 1.0 + 3.0 / std::sqrt(static_cast<double>(cols));
          ASSERT_LE(linear_error(seen(activations, matrix.view(), x, m), values, y, rows), limit)
              << fmt::format("kind {} groups of {} zeros {} [{}, {}], {} tokens", static_cast<int>(matrix.view().kind),
                             matrix.view().group_size, matrix.view().zeros != nullptr, rows, cols, m);
        }
      }
    }
  }
}

TEST_P(PackedTest, QuantizedActivationsAreAsCloseAsTheirTypeAllows) {
  constexpr std::int64_t kCols = 203;
  auto x = random_floats(kCols, 3);
  x[70] = 50.0F;  // an outlier costs its own block only
  for (const int planes : {1, 2}) {
    ActivationBuffers buffers(1, kCols, planes, true);
    kernels_.quantize(x.data(), kCols, 0, buffers.view);
    for (std::int64_t i = 0; i < buffers.depth; ++i) {
      const float value = i < kCols ? x[static_cast<std::size_t>(i)] : 0.0F;
      const float step = buffers.scales[static_cast<std::size_t>(i / 64)];
      EXPECT_LE(std::fabs(buffers.value(0, i) - value), 0.5001F * step) << i;
      EXPECT_EQ(buffers.half_bits[static_cast<std::size_t>(i)], f32_to_bf16(value));
    }
    for (std::int64_t half = 0; half < buffers.depth / 32; ++half) {
      int sum = 0;
      for (std::int64_t i = 32 * half; i < 32 * half + 32; ++i) {
        for (int plane = 0; plane < planes; ++plane) {
          sum += buffers.codes[static_cast<std::size_t>(plane * buffers.depth + i)] *
                 (planes == 2 && plane == 0 ? 256 : 1);
        }
      }
      EXPECT_EQ(buffers.halves[static_cast<std::size_t>(half)], -sum);
    }
    EXPECT_EQ(buffers.sums[1], buffers.halves[2] + buffers.halves[3]);
    for (std::size_t half = 0; half < buffers.halves.size(); ++half) {
      EXPECT_EQ(buffers.halves[half], buffers.quarters[2 * half] + buffers.quarters[2 * half + 1]);
    }
    EXPECT_NE(buffers.quarters[0], buffers.quarters[1]);
    const float largest = *std::max_element(x.begin(), x.begin() + 64);
    EXPECT_LE(buffers.scales[0], largest / (planes == 1 ? 63 : 8191));
  }
}

TEST_P(PackedTest, EveryLargestValueFitsItsPlanes) {
  std::vector<float> x(64, 0.25F);
  for (const int planes : {1, 2}) {
    for (int i = 0; i < 4096; ++i) {
      x[5] = (i % 2 == 0 ? 1.0F : -1.0F) * (1.0F + static_cast<float>(i) / 4096);
      if (i == 4095) x[5] = 32639.7F / 16384;  // rounds to a code that the planes cannot hold, on too fine a scale
      ActivationBuffers buffers(1, 64, planes, false);
      kernels_.quantize(x.data(), 64, 0, buffers.view);
      ASSERT_LE(std::fabs(buffers.value(0, 5) - x[5]), 0.5001F * buffers.scales[0]) << planes << " " << x[5];
    }
  }
}

TEST_P(PackedTest, OneHotInputsReturnTheDequantizedColumnsExactly) {
  constexpr std::int64_t kRows = 35, kCols = 70;
  for (const PackedMatrix& matrix : matrices(kRows, kCols, context_)) {
    const RefMatrix values = values_of(matrix.view());
    for (const std::int64_t m : {std::int64_t{1}, kCols}) {
      for (std::int64_t first = 0; first < kCols; first += m) {
        std::vector<float> x(static_cast<std::size_t>(m * kCols));
        for (std::int64_t i = 0; i < m; ++i) x[static_cast<std::size_t>(i * kCols + first + i)] = -2.0F;
        const auto y = run(matrix.view(), Activations::a16, x, m);
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t n = 0; n < kRows; ++n) {
            ASSERT_EQ(y[static_cast<std::size_t>(i * kRows + n)], -2.0 * values.at(n, first + i)) << n;
          }
        }
      }
    }
  }
}

TEST_P(PackedTest, IntegerWeightsGiveTheSameBitsOnEveryInstructionSet) {
  constexpr std::int64_t kTokens = 9;
  for (const auto& [rows, cols] : {std::pair{7, 330}, {37, 330}, {37, 256}}) {
    const auto x = random_floats(kTokens * cols, 4);
    for (const PackedMatrix& matrix : matrices(rows, cols, context_)) {
      if (matrix.view().kind == PackedKind::bf16) continue;
      for (const auto activations : {Activations::a8, Activations::a16}) {
        const auto y = run(matrix.view(), activations, x, kTokens);
        FusedLinear generic(packed_kernels(*available_kernels().back()), pool_);
        std::vector<float> expected(y.size(), kPoison);
        const FusedJob job{&matrix.view(), expected.data()};
        generic.run(activations, x.data(), kTokens, {&job, 1}, {});
        ASSERT_EQ(y, expected) << static_cast<int>(matrix.view().kind) << " " << matrix.view().group_size;
      }
    }
  }
}

TEST_P(PackedTest, ARowIsTheSameBitsAloneAndInAnyBatch) {
  constexpr std::int64_t kRows = 50, kCols = 200, kTokens = 65;
  const auto x = random_floats(kTokens * kCols, 4);
  ThreadPool alone_pool(1);
  const auto a =
      PackedMatrix::from_int8(random_input(7, kCols, 1)->values, 7, kCols, random_input(7, kCols, 1)->scales, context_);
  for (const PackedMatrix& matrix : matrices(kRows, kCols, context_)) {
    const PackedCompensator compensator(random_compensator(5, 2, 4, kRows, random_input(7, kCols, 1), 2), matrix.view(),
                                        "test", arena_);
    const PackedView* inputs[] = {&a.view()};
    for (const auto activations : {Activations::a8, Activations::a16}) {
      std::vector<float> alone(static_cast<std::size_t>(kTokens * kRows));
      for (const std::int64_t m : {1, 2, 5, 6, 7, 8, 13, 65}) {
        std::vector<float> y(alone.size(), kPoison);
        for (std::int64_t first = 0; first < kTokens; first += m) {
          FusedLinear fused(kernels_, m % 2 == 0 ? pool_ : alone_pool);
          const FusedJob job{&matrix.view(), y.data() + first * kRows, &compensator, 0};
          fused.run(activations, x.data() + first * kCols, std::min(m, kTokens - first), {&job, 1}, inputs);
        }
        if (m == 1) alone = y;
        ASSERT_EQ(y, alone) << static_cast<int>(matrix.view().kind) << " " << m;
      }
    }
  }
}

TEST_P(PackedTest, CompensatorsOfEveryRankAndEveryFusion) {
  constexpr std::int64_t kCols = 150;
  const W4Matrix first = random_w4(40, kCols, {}, 1), second = random_w4(33, kCols, {}, 2);
  const PackedMatrix packed[] = {PackedMatrix::from_w4(first, "", context_),
                                 PackedMatrix::from_w4(second, "", context_)};
  for (const std::int64_t rank : {1, 3, 16, 17, 64}) {
    for (const std::int64_t hidden : {0, 1, 8, 17}) {
      const auto a = random_input(rank + 3, kCols, 5);
      const Compensator sources[] = {random_compensator(rank, 3, hidden, 40, a, 6),
                                     random_compensator(rank, 3, hidden, 33, a, 7)};
      const auto packed_a = PackedMatrix::from_int8(a->values, a->rows, kCols, a->scales, context_);
      const PackedView* inputs[] = {&packed_a.view()};
      const PackedCompensator compensators[] = {{sources[0], packed[0].view(), "", arena_},
                                                 {sources[1], packed[1].view(), "", arena_}};
      for (const std::int64_t m : {1, 5, 19}) {
        const auto x = random_floats(m * kCols, 8);
        std::vector<float> results[kFusions.size()][2];
        for (std::size_t fusion = 0; fusion < kFusions.size(); ++fusion) {
          auto& [y0, y1] = results[fusion];
          y0.assign(static_cast<std::size_t>(m * 40), kPoison);
          y1.assign(static_cast<std::size_t>(m * 33), kPoison);
          const FusedJob jobs[] = {{&packed[0].view(), y0.data(), &compensators[0], 0},
                                   {&packed[1].view(), y1.data(), &compensators[1], 0}};
          FusedLinear fused(kernels_, pool_);
          fused.run(Activations::a16, x.data(), m, jobs, inputs, kFusions[fusion]);
          EXPECT_EQ(results[0][0], y0) << fusion_name(kFusions[fusion]);
          EXPECT_EQ(results[0][1], y1) << fusion_name(kFusions[fusion]);
        }
        const auto matrix = as_matrix(x, m, kCols);
        for (const int i : {0, 1}) {
          auto expected = ref::linear(matrix, ref::dequantize(i == 0 ? first : second));
          ref::add_correction(sources[i], matrix, expected);
          EXPECT_LT(testing::relative_error(results[0][i], expected.values), 1e-4) << rank << " " << hidden << " " << m;
        }
      }
    }
  }
}

TEST_P(PackedTest, WritesOnlyWhatBelongsToIt) {
  constexpr std::int64_t kRows = 37, kCols = 41, kPad = 5, kTokens = 8;
  for (const PackedMatrix& matrix : matrices(kRows, kCols, context_)) {
    ActivationBuffers x(kTokens, kCols, 2, true);
    const auto values = random_floats(kTokens * kCols, 3);
    for (std::int64_t i = 0; i < kTokens; ++i) kernels_.quantize(values.data() + i * kCols, kCols, i, x.view);
    std::vector<float> y(static_cast<std::size_t>(kTokens * (kRows + kPad)), 12345.0F);
    kernels_.multiply(matrix.view(), 1, 2, x.view, 2, 7, nullptr, y.data(), kRows + kPad);
    for (std::int64_t i = 0; i < kTokens; ++i) {
      for (std::int64_t n = 0; n < kRows + kPad; ++n) {
        const bool own = i >= 2 && i < 7 && n >= 32 && n < kRows;
        ASSERT_EQ(y[static_cast<std::size_t>(i * (kRows + kPad) + n)] != 12345.0F, own) << i << " " << n;
      }
    }
  }
}

TEST_P(PackedTest, TheComparisonSeesAPlantedFault) {
  constexpr std::int64_t kRows = 40, kCols = 128, kTokens = 3;
  const W4Matrix good = random_w4(kRows, kCols, {32, false}, 1);
  const auto x = random_floats(kTokens * kCols, 2);
  const auto error_of = [&](const W4Matrix& planted) {
    const auto packed = PackedMatrix::from_w4(planted, "planted", context_);
    return linear_error(seen(Activations::a16, packed.view(), x, kTokens), ref::dequantize(good),
                        run(packed.view(), Activations::a16, x, kTokens), kRows);
  };
  EXPECT_LE(error_of(good), 1.5);
  W4Matrix nibbles = good;  // the two nibbles of every byte change places
  for (auto& word : nibbles.packed) word = (word & 0x0f0f0f0fU) << 4 | (word & 0xf0f0f0f0U) >> 4;
  EXPECT_GT(error_of(nibbles), 100.0);
  W4Matrix rows = good;  // rows 3 and 4 change places
  const auto words = good.words_per_row();
  std::swap_ranges(rows.packed.begin() + 3 * words, rows.packed.begin() + 4 * words, rows.packed.begin() + 4 * words);
  EXPECT_GT(error_of(rows), 100.0);
  W4Matrix zero = good;
  zero.zeros[5] = static_cast<std::uint8_t>((zero.zeros[5] + 1) % 16);
  EXPECT_GT(error_of(zero), 100.0);
}

TEST_P(PackedTest, NanAndInfinityShow) {
  constexpr std::int64_t kCols = 130;
  const auto matrix = PackedMatrix::from_w4(random_w4(20, kCols, {}, 1), "", context_);
  for (const float bad : {kPoison, std::numeric_limits<float>::infinity()}) {
    for (const auto activations : {Activations::a8, Activations::a16}) {
      auto x = random_floats(kCols, 2);
      x[100] = bad;
      for (const float value : run(matrix.view(), activations, x, 1)) EXPECT_TRUE(std::isnan(value));
    }
  }
  const std::vector<float> zeros(kCols);
  for (const float value : run(matrix.view(), Activations::a16, zeros, 1)) EXPECT_EQ(value, 0.0F);
}

TEST(PackedMatrixTest, AMatrixShippedInQ80KeepsItsValues) {
  ThreadPool pool(1);
  WeightArena arena;
  std::vector<float> values = random_floats(40 * 96, 3);
  for (std::size_t block = 0; block < values.size(); block += 32) {
    float largest = 0;
    for (std::size_t i = block; i < block + 32; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float scale = f16_to_f32(f32_to_f16(largest / 127.0F));
    for (std::size_t i = block; i < block + 32; ++i) values[i] = std::nearbyint(values[i] / scale) * scale;
  }
  const auto packed =
      PackedMatrix::head(Tensor::from_floats({40, 96}, values), HeadType::int8, "head", PackContext{pool, arena});
  const auto kept = values_of(packed.view()).values;
  for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(kept[i], values[i]);
}

TEST(PackedMatrixTest, RefusesSizesThatDoNotFit) {
  ThreadPool pool(1);
  WeightArena arena;
  W4Matrix matrix = random_w4(4, 20, {}, 1);
  matrix.packed.pop_back();
  EXPECT_THROW(PackedMatrix::from_w4(matrix, "broken", PackContext{pool, arena}), Error);
  EXPECT_THROW(PackedMatrix::to_bf16(Tensor(DType::i32, {2, 2}), "integers", PackContext{pool, arena}), Error);
  EXPECT_THROW(PackedMatrix::head(Tensor(DType::f32, {4}), HeadType::int8, "vector", PackContext{pool, arena}), Error);
}

INSTANTIATE_TEST_SUITE_P(Isa, PackedTest, ::testing::ValuesIn(available_kernels().begin(), available_kernels().end()),
                         [](const auto& info) { return std::string(info.param->isa); });

}  // namespace
}  // namespace spear
