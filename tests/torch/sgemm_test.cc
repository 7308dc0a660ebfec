// Float32 products of libtorch, which reach BLAS's sgemm, against float64 ones: the arguments' order is easily mistaken.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <limits>

#include "torch/tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;

constexpr double kRounding = 1e-6;

struct Shape {
  std::int64_t m, n, k;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {1, 65, 33}, {64, 1, 129}, {37, 53, 1}, {65, 127, 576}, {300, 17, 1025}};

/// A [rows, cols] view with another order in memory, or with gaps between its rows.
torch::Tensor operand(std::int64_t rows, std::int64_t cols, bool transposed, bool gaps, std::uint64_t seed) {
  const std::int64_t extra = gaps ? 5 : 0;
  return transposed ? random_tensor({cols, rows + extra}, seed).narrow(1, 0, rows).t()
                    : random_tensor({rows, cols + extra}, seed).narrow(1, 0, cols);
}

TEST(SgemmTest, OperandsInAnyOrder) {
  for (const auto& [m, n, k] : kShapes) {
    for (int bits = 0; bits < 8; ++bits) {
      const auto a = operand(m, k, (bits & 1) != 0, (bits & 4) != 0, 1), b = operand(k, n, (bits & 2) != 0, (bits & 4) != 0, 2);
      const auto expected = torch::matmul(a.to(torch::kFloat64), b.to(torch::kFloat64));
      EXPECT_LT(distance(torch::matmul(a, b), expected), kRounding) << m << " " << n << " " << k << " " << bits;
    }
  }
}

TEST(SgemmTest, ScaledSumWithWhatWasThere) {
  for (const auto& [m, n, k] : kShapes) {
    const auto c = random_tensor({m, n}, 3), a = random_tensor({m, k}, 4), b = random_tensor({k, n}, 5);
    const auto expected = torch::addmm(c.to(torch::kFloat64), a.to(torch::kFloat64), b.to(torch::kFloat64), -0.5, 2.0);
    EXPECT_LT(distance(torch::addmm(c, a, b, -0.5, 2.0), expected), kRounding) << m << " " << n << " " << k;
  }
}

TEST(SgemmTest, OutputIsNotReadWhenItDoesNotCount) {
  auto out = torch::full({37, 53}, std::numeric_limits<float>::quiet_NaN());
  const auto a = random_tensor({37, 64}, 6), b = random_tensor({64, 53}, 7);
  torch::mm_out(out, a, b);
  EXPECT_LT(distance(out, torch::matmul(a.to(torch::kFloat64), b.to(torch::kFloat64))), kRounding);
}

TEST(SgemmTest, NothingToSumGivesZeros) {
  EXPECT_TRUE(torch::matmul(torch::ones({3, 0}), torch::ones({0, 4})).eq(0).all().item<bool>());
}

#ifdef SPEAR_HAVE_ONEDNN
TEST(SgemmTest, IsThisPrograms) {
  Dl_info found{}, here{};
  ASSERT_NE(dladdr(dlsym(RTLD_DEFAULT, "sgemm_"), &found), 0);
  static const int of_this_program = 0;
  ASSERT_NE(dladdr(&of_this_program, &here), 0);
  EXPECT_EQ(found.dli_fbase, here.dli_fbase) << "libtorch calls the sgemm_ of " << found.dli_fname;
}
#endif

}  // namespace
}  // namespace spear
