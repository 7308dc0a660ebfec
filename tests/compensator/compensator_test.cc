// The reference loops against a brute-force evaluation of design section 2 in double precision.
#include "compensator/compensator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/random.h"
#include "tensor/dtype.h"

namespace spear {
namespace {

struct Dims {
  std::int64_t in, out, rank, gate_rows, hidden;
};

Compensator make_compensator(const Dims& dims, std::uint64_t seed) {
  Random random(seed);
  const auto bytes = [&](std::int64_t count) {
    std::vector<std::int8_t> values(static_cast<std::size_t>(count));
    for (auto& v : values) v = static_cast<std::int8_t>(static_cast<int>(random.below(255)) - 127);
    return values;
  };
  const auto halves = [&](std::int64_t count, std::uint16_t (*encode)(float), double scale) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
    for (auto& v : values) v = encode(static_cast<float>(scale * random.normal()));
    return values;
  };
  auto a = std::make_shared<CompensatorInput>();
  a->rows = dims.rank + dims.gate_rows;
  a->cols = dims.in;
  a->values = bytes(a->rows * a->cols);
  a->scales = halves(a->rows, f32_to_f16, 0.002);
  Compensator result;
  result.rank = dims.rank;
  result.gate_rows = dims.gate_rows;
  result.out_features = dims.out;
  result.b = bytes(dims.out * dims.rank);
  result.b_scales = halves(dims.rank, f32_to_f16, 0.01);
  result.gate.hidden = dims.hidden;
  result.gate.w1 = halves(dims.hidden * a->rows, f32_to_bf16, 0.7);
  result.gate.b1 = halves(dims.hidden, f32_to_bf16, 0.7);
  result.gate.w2 = halves(dims.rank * dims.hidden, f32_to_bf16, 0.7);
  result.gate.b2 = halves(dims.hidden > 0 ? dims.rank : 0, f32_to_bf16, 0.7);
  result.a = std::move(a);
  return result;
}

/// y = B (g(z) ⊙ z) in double, straight from the formulas.
std::vector<double> brute_force(const Compensator& c, const std::vector<float>& x) {
  const auto n = [](std::int64_t v) { return static_cast<std::size_t>(v); };
  const std::size_t rank = n(c.rank), rows = n(c.a->rows), cols = n(c.a->cols), hidden = n(c.gate.hidden);
  std::vector<double> u(rows), h(hidden), y(n(c.out_features));
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = 0; i < cols; ++i) {
      u[r] += static_cast<double>(f16_to_f32(c.a->scales[r])) * c.a->values[r * cols + i] * static_cast<double>(x[i]);
    }
  }
  for (std::size_t j = 0; j < hidden; ++j) {
    double t = bf16_to_f32(c.gate.b1[j]);
    for (std::size_t r = 0; r < rows; ++r) t += static_cast<double>(bf16_to_f32(c.gate.w1[j * rows + r])) * u[r];
    h[j] = t / (1 + std::exp(-t));
  }
  for (std::size_t r = 0; r < rank; ++r) {
    double t = 0;
    if (hidden > 0) t = bf16_to_f32(c.gate.b2[r]);
    for (std::size_t j = 0; j < hidden; ++j) t += static_cast<double>(bf16_to_f32(c.gate.w2[r * hidden + j])) * h[j];
    const double weighted = (1 + std::tanh(t)) * u[r] * static_cast<double>(f16_to_f32(c.b_scales[r]));
    for (std::size_t o = 0; o < y.size(); ++o) y[o] += c.b[o * rank + r] * weighted;
  }
  return y;
}

class Reference : public testing::TestWithParam<Dims> {};

TEST_P(Reference, MatchesDoublePrecision) {
  const Compensator c = make_compensator(GetParam(), 11);
  c.validate();
  Random random(5);
  std::vector<float> x(static_cast<std::size_t>(c.in_features()));
  for (auto& v : x) v = static_cast<float>(random.normal());
  std::vector<float> z(static_cast<std::size_t>(c.a->rows)), y(static_cast<std::size_t>(c.out_features), 0.5F);
  project(*c.a, x, z);
  add_correction(c, z, y);
  const auto expected = brute_force(c, x);
  double norm = 0;
  for (const double v : expected) norm += v * v;
  const double tolerance = 1e-5 * (1 + std::sqrt(norm));  // float32 sums of at most 300 terms
  for (std::size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], 0.5 + expected[i], tolerance) << i;
}

INSTANTIATE_TEST_SUITE_P(Shapes, Reference,
                         testing::Values(Dims{48, 40, 1, 0, 0}, Dims{48, 40, 6, 0, 0}, Dims{300, 17, 5, 0, 8},
                                         Dims{64, 64, 4, 3, 5}, Dims{33, 7, 2, 1, 1}));

TEST(Gate, ZeroLastLayerIsTheStaticCompensator) {
  Compensator c = make_compensator({32, 16, 4, 2, 6}, 3);
  std::fill(c.gate.w2.begin(), c.gate.w2.end(), 0);
  std::fill(c.gate.b2.begin(), c.gate.b2.end(), 0);
  const std::vector<float> z{1, -2, 3, -4, 5, 6};
  std::vector<float> g(4);
  gate_values(c, z, g);
  EXPECT_EQ(g, std::vector<float>(4, 1.0F));
}

TEST(QuantizeRowsInt8, ErrorIsAtMostHalfAStepAndZeroRowsStayZero) {
  Random random(9);
  const std::int64_t rows = 4, cols = 50;
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (auto& v : values) v = static_cast<float>(random.normal());
  std::fill_n(values.begin() + cols, cols, 0.0F);
  std::vector<std::int8_t> codes;
  std::vector<std::uint16_t> scales;
  quantize_rows_int8(values, rows, cols, codes, scales);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const float step = f16_to_f32(scales[static_cast<std::size_t>(i / cols)]);
    const float back = step * static_cast<float>(codes[static_cast<std::size_t>(i)]);
    // F16 rounding of the scale may clip the largest value by 127 half-ulps of the scale.
    ASSERT_LE(std::fabs(back - values[static_cast<std::size_t>(i)]), step * (0.5F + 127 * 0x1p-11F)) << i;
  }
  EXPECT_EQ(scales[1], 0);
  for (std::int64_t i = cols; i < 2 * cols; ++i) EXPECT_EQ(codes[static_cast<std::size_t>(i)], 0);
}

TEST(CompensatorBytes, SharedInputCountsOnce) {
  const Dims dims{48, 40, 6, 2, 3};
  const Compensator a = make_compensator(dims, 1);
  Compensator b = make_compensator(dims, 2);
  const std::int64_t input = 8 * 48 + 2 * 8;
  const std::int64_t own = 40 * 6 + 2 * 6 + 2 * (3 * 8 + 3 + 6 * 3 + 6);
  EXPECT_EQ(a.own_bytes(), own);
  const std::vector<const Compensator*> both{&a, &b};
  EXPECT_EQ(compensator_bytes(both), 2 * own + 2 * input);
  b.a = a.a;
  EXPECT_EQ(compensator_bytes(both), 2 * own + input);
}

TEST(Validate, NamesWhatDoesNotFit) {
  const Compensator good = make_compensator({48, 40, 6, 2, 3}, 1);
  EXPECT_NO_THROW(good.validate());
  const auto refused = [&](auto&& spoil) {
    Compensator bad = good;
    spoil(bad);
    EXPECT_THROW(bad.validate(), Error);
  };
  refused([](Compensator& c) { c.a = nullptr; });
  refused([](Compensator& c) { c.rank = 0; });
  refused([](Compensator& c) { c.gate_rows = 1; });
  refused([](Compensator& c) { c.b.pop_back(); });
  refused([](Compensator& c) { c.b_scales.push_back(0); });
  refused([](Compensator& c) { c.b_scales[0] = 0x7c00; });
  refused([](Compensator& c) { c.gate.w1.pop_back(); });
  refused([](Compensator& c) { c.gate.b2.clear(); });
  refused([](Compensator& c) { c.gate.w2[0] = 0x7fc0; });
  refused([](Compensator& c) { c.gate.hidden = 0; });
}

}  // namespace
}  // namespace spear
