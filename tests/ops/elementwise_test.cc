#include <gtest/gtest.h>

#include "ops/comparison.h"
#include "ops/cpu/kernels.h"
#include "ops/random_model.h"

namespace spear {
namespace {

using testing::as_matrix;
using testing::random_floats;
using testing::relative_error;

class ElementwiseTest : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels_ = *GetParam();
};

constexpr std::int64_t kSizes[] = {1, 2, 7, 8, 15, 16, 17, 33, 100, 577};
constexpr float kGuard = 777.0F;

TEST_P(ElementwiseTest, RmsNorm) {
  for (const std::int64_t n : kSizes) {
    const auto x = random_floats(n, 1, 3.0), gain = random_floats(n, 2);
    std::vector<float> y(static_cast<std::size_t>(n + 1), kGuard);
    kernels_.rms_norm(x.data(), gain.data(), n, 1e-5F, y.data());
    EXPECT_EQ(y.back(), kGuard);
    y.pop_back();
    EXPECT_LT(relative_error(y, ref::rms_norm(as_matrix(x, 1, n), gain, 1e-5).values), 1e-6) << n;
  }
  std::vector<float> zeros(9), gain(9, 1.0F), y(9);
  kernels_.rms_norm(zeros.data(), gain.data(), 9, 1e-5F, y.data());  // eps keeps it finite
  EXPECT_EQ(y, zeros);
}

TEST_P(ElementwiseTest, SiluMultiply) {
  for (const std::int64_t n : kSizes) {
    auto gate = random_floats(n, 3, 8.0);
    const auto up = random_floats(n, 4);
    const auto expected = ref::gated_act(as_matrix(gate, 1, n), as_matrix(up, 1, n), HiddenAct::silu);
    gate.push_back(kGuard);
    kernels_.silu_multiply(gate.data(), up.data(), n);
    EXPECT_EQ(gate.back(), kGuard);
    for (std::int64_t i = 0; i < n; ++i) {
      const double want = expected.at(0, i);
      EXPECT_NEAR(gate[static_cast<std::size_t>(i)], want, 1e-6 * std::fabs(want) + 1e-30) << i;
    }
  }
  std::vector<float> extreme{200.0F, -200.0F, 0.0F, std::numeric_limits<float>::quiet_NaN()};
  const std::vector<float> ones(4, 1.0F);
  kernels_.silu_multiply(extreme.data(), ones.data(), 4);
  EXPECT_EQ(extreme[0], 200.0F);
  EXPECT_NEAR(extreme[1], 0.0F, 1e-30F);
  EXPECT_EQ(extreme[2], 0.0F);
  EXPECT_TRUE(std::isnan(extreme[3]));
}

TEST_P(ElementwiseTest, GeluMultiply) {
  for (const std::int64_t n : kSizes) {
    auto gate = random_floats(n, 3, 3.0);
    const auto up = random_floats(n, 4);
    const auto expected = ref::gated_act(as_matrix(gate, 1, n), as_matrix(up, 1, n), HiddenAct::gelu_tanh);
    gate.push_back(kGuard);
    kernels_.gelu_multiply(gate.data(), up.data(), n);
    EXPECT_EQ(gate.back(), kGuard);
    for (std::int64_t i = 0; i < n; ++i) {
      const double want = expected.at(0, i);
      EXPECT_NEAR(gate[static_cast<std::size_t>(i)], want, 1e-5 * std::fabs(want) + 1e-12) << i;
    }
  }
  std::vector<float> extreme{200.0F, -200.0F, 0.0F, std::numeric_limits<float>::quiet_NaN()};
  const std::vector<float> ones(4, 1.0F);
  kernels_.gelu_multiply(extreme.data(), ones.data(), 4);
  EXPECT_EQ(extreme[0], 200.0F);
  EXPECT_NEAR(extreme[1], 0.0F, 1e-30F);
  EXPECT_EQ(extreme[2], 0.0F);
  EXPECT_TRUE(std::isnan(extreme[3]));
}

TEST_P(ElementwiseTest, Softmax) {
  for (const std::int64_t n : kSizes) {
    auto x = random_floats(n, 5, 10.0);
    const std::vector<double> scores(x.begin(), x.end());
    auto expected = scores;
    const double largest = *std::max_element(expected.begin(), expected.end());
    double sum = 0;
    for (double& value : expected) sum += value = std::exp(value - largest);
    for (double& value : expected) value /= sum;
    x.push_back(kGuard);
    kernels_.softmax(x.data(), n);
    EXPECT_EQ(x.back(), kGuard);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double rounding = FLT_EPSILON * (8 + std::fabs(scores[at] - largest));  // of the exponent's argument
      EXPECT_NEAR(x[at], expected[at], rounding * expected[at] + 1e-30) << n << " " << i;
    }
  }
  std::vector<float> far{-1e30F, 1e4F, 1e4F, -3e38F};
  kernels_.softmax(far.data(), 4);
  EXPECT_EQ(far, (std::vector<float>{0.0F, 0.5F, 0.5F, 0.0F}));
  std::vector<float> poisoned{1.0F, std::numeric_limits<float>::quiet_NaN(), 2.0F};
  kernels_.softmax(poisoned.data(), 3);
  EXPECT_TRUE(std::isnan(poisoned[1]));
}

TEST_P(ElementwiseTest, Add) {
  for (const std::int64_t n : kSizes) {
    const auto x = random_floats(n, 6);
    auto y = random_floats(n, 7);
    y.push_back(kGuard);
    auto expected = y;
    for (std::size_t i = 0; i < x.size(); ++i) expected[i] += x[i];
    kernels_.add(x.data(), n, y.data());
    EXPECT_EQ(y, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, ElementwiseTest,
                         ::testing::ValuesIn(available_kernels().begin(), available_kernels().end()),
                         [](const auto& info) { return std::string(info.param->isa); });

}  // namespace
}  // namespace spear
