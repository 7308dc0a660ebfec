// Products of any types and views against float64 ones.
#include "torch/transposed_product.h"

#include <gtest/gtest.h>

#include "ops/random_model.h"
#include "torch/tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;

torch::Tensor bf16(std::vector<std::int64_t> shape, std::uint64_t seed) {
  return random_tensor(std::move(shape), seed).to(torch::kBFloat16);
}

TEST(TransposedProductTest, OfMixedTypesAndViews) {
  const double tolerance = has_bf16_kernels() ? 1.0 / 256 : 2e-6;  // both operands are rounded
  for (const std::int64_t n : {1, 33, 500}) {
    const auto a = random_tensor({n, 24}, 5), b = bf16({n, 40}, 6).narrow(1, 3, 31);
    const auto expected = torch::matmul(a.to(torch::kFloat64).t(), b.to(torch::kFloat64));
    const auto product = transposed_product(a, b);
    EXPECT_EQ(product.scalar_type(), torch::kFloat32);
    EXPECT_LT(distance(product, expected), tolerance) << n;
  }
}

}  // namespace
}  // namespace spear
