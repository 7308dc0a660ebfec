// Quantizers of one matrix against brute force and textbook forms in float64.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "ops/random_model.h"
#include "quant/gptq.h"
#include "quant/whitened_factors.h"
#include "tensor/dtype.h"
#include "torch/tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;
using torch::Tensor;

const W4Scheme kSchemes[] = {{0, true}, {0, false}, {32, true}, {32, false}};

Tensor wide(const Tensor& t) { return t.to(torch::kFloat64); }

/// Inputs whose features are correlated and differ in size, as a float64 moment E[x xᵀ].
Tensor correlated_inputs(std::int64_t tokens, std::int64_t features, std::uint64_t seed) {
  const auto scale = (1.5 * random_tensor({features}, seed + 1)).exp();
  return torch::matmul(random_tensor({tokens, features}, seed),
                       random_tensor({features, features}, seed + 2, 0.2) + torch::eye(features)) *
         scale;
}
Tensor moment(const Tensor& x) { return torch::matmul(wide(x).t(), wide(x)) / static_cast<double>(x.size(0)); }

/// tr((W − Ŵ) H (W − Ŵ)ᵀ) per row.
Tensor objective(const Tensor& weight, const Tensor& hessian, const QuantizedLinear& q) {
  const auto e = wide(weight) - wide(q.dequantize());
  return (torch::matmul(e, wide(hessian)) * e).sum(1);
}

TEST(RoundToNearestTest, IsTheFormulaOfEveryScheme) {
  const std::int64_t rows = 7, cols = 70;
  auto weight = random_tensor({rows, cols}, 1);
  weight[1] = weight[1].abs() + 0.5;  // asymmetric ranges hold 0 all the same
  weight[2] = -weight[2].abs() - 0.5;
  weight[3].zero_();
  for (const W4Scheme& scheme : kSchemes) {
    const auto q = quantize_rtn(weight, scheme);
    const std::int64_t width = scheme.group_size == 0 ? cols : scheme.group_size;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t first = 0; first < cols; first += width) {
        const std::int64_t end = std::min(cols, first + width);
        double low = 0, high = 0;
        for (std::int64_t col = first; col < end; ++col) {
          low = std::min(low, weight[row][col].item<double>());
          high = std::max(high, weight[row][col].item<double>());
        }
        const double exact = scheme.symmetric ? std::max(high, -low) / 7 : (high - low) / 15;
        const double scale = q.scales[row][first / width].item<double>();
        const double zero = q.zeros[row][first / width].item<double>();
        EXPECT_GT(scale, 0);
        EXPECT_EQ(scale, f16_to_f32(f32_to_f16(static_cast<float>(scale))));
        EXPECT_NEAR(scale, exact, exact * 0x1.001p-11 + 0x1p-24);
        EXPECT_EQ(zero, scheme.symmetric ? 8 : std::nearbyint(std::min(15.0, std::max(0.0, -low / scale))));
        for (std::int64_t col = first; col < end; ++col) {
          const double w = weight[row][col].item<double>(), code = q.codes[row][col].item<double>();
          EXPECT_EQ(code, std::nearbyint(code));
          EXPECT_LE(std::fabs(std::min(15.0, std::max(0.0, w / scale + zero)) - code), 0.5 + 1e-4);
        }
      }
    }
  }
}

TEST(ClipTest, IsNeverWorseThanRoundingAndUsuallyBetter) {
  const auto weight = random_tensor({40, 96}, 2);
  const auto importance = (2 * random_tensor({96}, 3)).exp();
  for (const W4Scheme& scheme : kSchemes) {
    const auto h = torch::diag(importance);
    const auto rounded = objective(weight, h, quantize_rtn(weight, scheme));
    const auto clipped = objective(weight, h, quantize_clip(weight, scheme, importance));
    EXPECT_TRUE((clipped <= rounded * (1 + 1e-5)).all().item<bool>());
    EXPECT_LT(clipped.sum().item<double>(), 0.9 * rounded.sum().item<double>());
  }
}

TEST(ClipTest, TakesANegativeScaleWhereItPays) {
  // -7..8 is a grid of step 1 on which 8 meets code -8; with a positive scale the step must be 8/7.
  const auto weight = torch::arange(-7, 9, torch::kFloat32).unsqueeze(0);
  for (const double sign : {1.0, -1.0}) {
    const auto q = quantize_clip(sign * weight, {}, torch::ones({16}));
    EXPECT_NEAR(q.scales.item<double>(), -sign, 0.02);
    const double rounded = distance(quantize_rtn(sign * weight, {}).dequantize(), sign * weight);
    EXPECT_LT(distance(q.dequantize(), sign * weight), 0.2 * rounded);
  }
}

TEST(QuantizedLinearTest, PacksAndUnpacksWithoutChange) {
  for (const W4Scheme& scheme : kSchemes) {
    auto weight = random_tensor({9, 77}, 4);
    weight[4].zero_();
    const auto q = quantize_clip(weight, scheme, torch::ones({77}));
    const W4Matrix packed = q.pack();
    const auto back = unpack(packed, torch::kCPU);
    EXPECT_TRUE(back.codes.equal(q.codes));
    EXPECT_TRUE(back.scales.equal(q.scales)) << to_string(scheme);
    EXPECT_TRUE(back.zeros.equal(q.zeros));
    EXPECT_TRUE(testing::as_tensor(packed.dequantize(), {9, 77}).equal(q.dequantize()));
  }
}

TEST(QuantizedLinearTest, KeepsTheOrderOfGroups) {
  for (const bool symmetric : {true, false}) {
    W4Matrix packed = quantize_clip(random_tensor({9, 77}, 4), {32, symmetric}, torch::ones({77})).pack();
    testing::shuffle_groups(packed, 3);
    const auto q = unpack(packed, torch::kCPU);
    EXPECT_TRUE(testing::as_tensor(packed.dequantize(), {9, 77}).equal(q.dequantize()));
    EXPECT_EQ(q.pack().group_index, packed.group_index);
    EXPECT_EQ(q.pack().packed, packed.packed);
    EXPECT_TRUE(q.rows(2, 3).dequantize().equal(q.dequantize().narrow(0, 2, 3)));
    W4Matrix other = packed;
    testing::shuffle_groups(other, 4);
    EXPECT_FALSE(unpack(other, torch::kCPU).dequantize().equal(q.dequantize()));
    // Below each other: as codes where the order is one, as values where it is not.
    EXPECT_TRUE(stack_rows({q, q}).codes.defined());
    const auto mixed = stack_rows({q, unpack(other, torch::kCPU)});
    EXPECT_TRUE(mixed.values.defined());
    EXPECT_TRUE(mixed.rows(0, 9).dequantize().equal(q.dequantize()));
    EXPECT_THROW(mixed.pack(), Error);
  }
}

/// GPTQ as in the paper, one column after the other: the inverse Hessian loses the column that was just rounded.
Tensor textbook_gptq(const Tensor& weight, const Tensor& hessian, const QuantizedLinear& grid) {
  const std::int64_t in = weight.size(1);
  const auto scales = wide(expand_groups(grid.scales, in, grid.scheme)).expand({weight.size(0), in});
  const auto zeros = wide(expand_groups(grid.zeros, in, grid.scheme)).expand({weight.size(0), in});
  auto w = wide(weight).clone(), inverse = torch::linalg_inv(hessian), codes = torch::zeros_like(w);
  const auto order = std::get<1>(hessian.diagonal().sort(/*stable=*/true, 0, /*descending=*/true));
  for (std::int64_t i = 0; i < in; ++i) {
    const auto j = order[i].item<std::int64_t>();
    const auto s = scales.select(1, j), z = zeros.select(1, j);
    const auto code = torch::round(w.select(1, j) / s + z).clamp(0, 15);
    codes.select(1, j).copy_(code);
    const auto error = (w.select(1, j) - (code - z) * s) / inverse[j][j];
    w -= torch::outer(error, inverse[j]);
    inverse = inverse - torch::outer(inverse.select(1, j), inverse[j]) / inverse[j][j];
    inverse.select(0, j).zero_();
    inverse.select(1, j).zero_();
  }
  return codes;
}

TEST(GptqTest, GivesTheCodesOfTheTextbook) {
  for (const W4Scheme& scheme : kSchemes) {
    const auto weight = random_tensor({12, 150}, 5);  // three blocks of columns
    const auto h = damped(moment(correlated_inputs(400, 150, 6)), 0.01);
    const auto grid = quantize_clip(weight, scheme, h.diagonal());
    const auto q = quantize_gptq(weight, h, grid);
    EXPECT_TRUE(wide(q.codes).equal(textbook_gptq(weight, h, grid))) << to_string(scheme);
    EXPECT_TRUE(q.scales.equal(grid.scales));
    EXPECT_LT(objective(weight, h, q).sum().item<double>(), 0.8 * objective(weight, h, grid).sum().item<double>());
  }
}

TEST(GptqTest, DampingAddsToTheDiagonal) {
  const auto h = moment(correlated_inputs(50, 8, 7));
  EXPECT_LT(distance(damped(h, 0.25), h + 0.25 * h.diagonal().mean() * torch::eye(8, torch::kFloat64)), 1e-15);
  const auto weight = random_tensor({3, 8}, 8);
  auto singular = torch::eye(8, torch::kFloat64);
  singular[5][5] = -1;
  EXPECT_THROW(quantize_gptq(weight, singular, quantize_rtn(weight, {})), Error);
  EXPECT_THROW(absorb_error(weight, singular, h, 1, {}, 1), Error);
}

TEST(CoordinateDescentTest, NeverRaisesTheObjectiveAndEndsAtAMinimum) {
  for (const W4Scheme& scheme : kSchemes) {
    const auto weight = random_tensor({6, 90}, 9);
    const auto h = damped(moment(correlated_inputs(200, 90, 10)), 0.01);
    for (auto q :
         {quantize_rtn(weight, scheme), quantize_gptq(weight, h, quantize_clip(weight, scheme, h.diagonal()))}) {
      auto last = objective(weight, h, q);
      for (int sweep = 0; sweep < 40; ++sweep) {
        descend_codes(weight, h, q);
        const auto now = objective(weight, h, q);
        EXPECT_TRUE((now <= last * (1 + 1e-5)).all().item<bool>());
        last = now;
      }
      for (std::int64_t col = 0; col < 90; ++col) {
        for (const double step : {-1.0, 1.0}) {
          auto other = q;
          other.codes = q.codes.to(torch::kFloat32);
          other.codes.select(1, col).add_(step).clamp_(0, 15);
          EXPECT_TRUE((objective(weight, h, other) >= last * (1 - 1e-5)).all().item<bool>()) << col;
        }
      }
    }
  }
}

TEST(RowScalesTest, NoOtherScaleOfTheFormatFitsBetter) {
  const auto weight = random_tensor({10, 60}, 11);
  const auto h = damped(moment(correlated_inputs(200, 60, 12)), 0.01);
  for (const bool symmetric : {true, false}) {
    auto q = quantize_rtn(weight, {0, symmetric});
    q.scales = refit_row_scales(weight, h, q);
    const auto best = objective(weight, h, q);
    for (const double ulps : {-2.0, -1.0, 1.0, 2.0}) {
      auto other = q;
      other.scales = (q.scales * (1 + ulps * 0x1p-10)).to(torch::kFloat16).to(torch::kFloat32);
      EXPECT_TRUE((objective(weight, h, other) >= best * (1 - 1e-6)).all().item<bool>()) << ulps;
    }
  }
  // A row of codes that all stand at zero keeps the scale it had.
  auto q = quantize_rtn(torch::zeros({1, 60}), {});
  EXPECT_TRUE(refit_row_scales(torch::zeros({1, 60}), h, q).equal(q.scales));
}

TEST(AbsorbErrorTest, IsTheLeastSquaresAnswer) {
  const std::int64_t tokens = 300, in = 12, out = 5;
  const auto x = wide(correlated_inputs(tokens, in, 13)), reference = x + wide(random_tensor({tokens, in}, 14, 0.3));
  const auto gap = wide(random_tensor({tokens, out}, 15, 0.2)) + 0.1 * x.narrow(1, 0, out);  // of the residual stream
  const auto weight = random_tensor({out, in}, 16);
  const double n = static_cast<double>(tokens);
  const auto d = torch::matmul((reference - x).t(), x) / n, r = torch::matmul(gap.t(), x) / n;
  // W' x should be W x_reference plus what the stream lacks.
  const auto targets = torch::matmul(reference, wide(weight).t()) + gap;
  const auto expected = std::get<0>(torch::linalg_lstsq(x, targets)).t();
  EXPECT_LT(distance(absorb_error(weight, moment(x), d, 1, r, 1), expected), 1e-6);
  // Shares, no residual, damping: the normal equations.
  const auto solver = damped(moment(x), 0.01);
  const auto change = wide(absorb_error(weight, solver, d, 0.6, r, 0.3)) - wide(weight);
  EXPECT_LT(distance(torch::matmul(change, solver), 0.6 * torch::matmul(wide(weight), d) + 0.3 * r), 1e-5);
  EXPECT_TRUE(absorb_error(weight, solver, torch::zeros_like(d), 1, {}, 1).equal(weight));
}

TEST(WhitenedFactorsTest, IsTheLeadingPartOfTheSvd) {
  for (const auto& [out, in] : {std::pair{9, 14}, std::pair{20, 11}}) {
    const auto h = damped(moment(correlated_inputs(200, in, 17)), 0.01);
    const auto error = random_tensor({out, in}, 18);
    for (const auto whitening : {Whitening::exact, Whitening::diagonal}) {
      const auto s = whitening == Whitening::exact ? torch::linalg_cholesky(h) : torch::diag(h.diagonal().sqrt());
      const auto [u, sigma, vt] = torch::linalg_svd(torch::matmul(wide(error), s), false);
      const auto f = whitened_factors(error, h, 6, whitening);
      EXPECT_LT(distance(f.singular_values, sigma), 1e-7);
      const auto lead = torch::matmul(u.narrow(1, 0, 6) * sigma.narrow(0, 0, 6), vt.narrow(0, 0, 6));
      const auto product = torch::matmul(wide(f.b), wide(f.a));
      EXPECT_LT(distance(product, torch::matmul(lead, torch::linalg_inv(s))), 1e-5);
      // What is left, weighted by the inputs, is the tail of the spectrum.
      const double left = torch::matmul(wide(error) - product, s).square().sum().item<double>();
      EXPECT_NEAR(left, sigma.narrow(0, 6, sigma.size(0) - 6).square().sum().item<double>(), 1e-5 * left);
      // A and B share the singular value evenly.
      EXPECT_LT(distance(f.b.norm(2, 0), sigma.narrow(0, 0, 6).sqrt()), 1e-5);
      const auto low = whitened_factors(error, h, 2, whitening);
      for (std::int64_t i = 0; i < 2; ++i) {
        const auto one = [i](const WhitenedFactors& w) { return torch::outer(w.b.select(1, i), w.a[i]); };
        EXPECT_LT(distance(one(low), one(f)), 1e-6);
      }
      EXPECT_EQ(whitened_factors(error, h, 100, whitening).a.size(0), std::min(out, in));
    }
  }
}

TEST(LeadingEigenpairsTest, OfALargeMatrixAreThoseOfAllPairs) {
  // A spectrum that falls, one with equal leading values, and one of less rank than is asked for.
  const std::int64_t n = 260, count = 6;
  const auto [q, r] = torch::linalg_qr(wide(random_tensor({n, n}, 30)));
  for (const auto& spectrum :
       {torch::logspace(0, -8, n, 10, torch::kFloat64), torch::cat({torch::ones({9}, torch::kFloat64), torch::full({n - 9}, 0.3, torch::kFloat64)}),
        torch::cat({torch::ones({3}, torch::kFloat64), torch::zeros({n - 3}, torch::kFloat64)}), torch::zeros({n}, torch::kFloat64)}) {
    const auto matrix = torch::matmul(q * spectrum, q.t());
    const auto [values, vectors] = leading_eigenpairs(matrix, count);
    ASSERT_GE(values.size(0), count);
    EXPECT_LT(values.size(0), n) << "not by way of all pairs";
    EXPECT_LT(distance(values.narrow(0, 0, count), spectrum.narrow(0, 0, count)), 1e-8);
    const auto lead = vectors.narrow(1, 0, count);
    EXPECT_LT(distance(torch::matmul(lead.t(), lead), torch::eye(count, torch::kFloat64)), 1e-10);
    EXPECT_LT(distance(torch::matmul(matrix, lead), lead * values.narrow(0, 0, count)), 1e-4);
    EXPECT_TRUE(leading_eigenpairs(matrix, count).vectors.equal(vectors));
  }
}

TEST(WhitenedFactorsTest, OfAWideErrorAreItsSvds) {
  const std::int64_t out = 250, in = 300;
  const auto h = damped(moment(correlated_inputs(2000, in, 17)), 0.01);
  const auto error = random_tensor({out, in}, 18);
  const auto s = torch::linalg_cholesky(h);
  const auto whole = torch::matmul(wide(error), s);
  const auto sigma = std::get<1>(torch::linalg_svd(whole, false));
  const auto f = whitened_factors(error, h, 3, Whitening::exact, 8);
  EXPECT_LT(distance(f.singular_values.narrow(0, 0, 8), sigma.narrow(0, 0, 8)), 1e-5 * sigma[0].item<double>());
  EXPECT_NEAR(f.energy, sigma.square().sum().item<double>(), 1e-5 * f.energy);
  const auto left = (whole - torch::matmul(torch::matmul(wide(f.b), wide(f.a)), s)).square().sum().item<double>();
  EXPECT_NEAR(left, sigma.narrow(0, 3, out - 3).square().sum().item<double>(), 1e-5 * left);
}

TEST(WhitenedFactorsTest, AnErrorOfZeroHasFactorsOfZero) {
  const auto f = whitened_factors(torch::zeros({4, 6}), torch::eye(6, torch::kFloat64), 2, Whitening::exact);
  EXPECT_EQ(f.a.abs().sum().item<double>(), 0);
  EXPECT_EQ(f.b.abs().sum().item<double>(), 0);
}

}  // namespace
}  // namespace spear
