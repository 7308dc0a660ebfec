// oneDNN's bfloat16 products against float64 ones of the same rounded operands.
#include "torch/packed_matmul.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/random_model.h"
#include "torch/tensors.h"
#include "torch/torch_model.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;

torch::Tensor bf16(std::vector<std::int64_t> shape, std::uint64_t seed) {
  return random_tensor(std::move(shape), seed).to(torch::kBFloat16);
}

TEST(PackedMatmulTest, ProductsOfAnyNumberOfRowsInAnyOrderOfCalls) {
  if (!has_bf16_kernels()) GTEST_SKIP() << "no bfloat16 kernels in this build or on this CPU";
  for (const auto& [out, in] : {std::pair<std::int64_t, std::int64_t>{48, 64}, {33, 17}, {1, 5}}) {
    const auto weight = bf16({out, in}, 1);
    PackedWeight packed(weight);
    for (const std::int64_t rows : {1, 7, 64, 7, 1}) {
      const auto x = bf16({rows, in}, static_cast<std::uint64_t>(2 + rows));
      const auto expected = torch::matmul(x.to(torch::kFloat64), weight.to(torch::kFloat64).t());
      EXPECT_LT(distance(packed.multiply(x, torch::kFloat32), expected), 2e-6) << out << " x " << in << ", " << rows;
      EXPECT_LT(distance(packed.multiply(x, torch::kBFloat16), expected), 1.0 / 128) << out << " x " << in << ", " << rows;
    }
  }
}

TEST(PackedMatmulTest, OnlyBfloat16MatricesArePacked) {
  EXPECT_THROW(PackedWeight(torch::zeros({4, 4})), Error);
  EXPECT_THROW(PackedWeight(torch::zeros({4}, torch::kBFloat16)), Error);
}

TEST(PackedMatmulTest, TransposedProductOfMixedTypesAndViews) {
  const double tolerance = has_bf16_kernels() ? 1.0 / 256 : 2e-6;  // both operands are rounded
  for (const std::int64_t n : {1, 33, 500}) {
    const auto a = random_tensor({n, 24}, 5), b = bf16({n, 40}, 6).narrow(1, 3, 31);
    const auto expected = torch::matmul(a.to(torch::kFloat64).t(), b.to(torch::kFloat64));
    const auto product = transposed_product(a, b);
    EXPECT_EQ(product.scalar_type(), torch::kFloat32);
    EXPECT_LT(distance(product, expected), tolerance) << n;
  }
}

TEST(PackedMatmulTest, AModelComputesTheSameOnPackedWeightsAndForgetsThemAfterwards) {
  testing::RandomModelOptions options;
  options.packed = false;
  TorchModel model(testing::random_model(options), torch::kCPU, torch::kBFloat16);
  const std::vector<std::int32_t> tokens{1, 5, 9, 2, 7, 3};
  const TokenBatch batch{tokens, 2, 3};
  std::vector<float> plain(static_cast<std::size_t>(6 * model.config().vocab_size)), packed(plain.size());
  model.logits(model.hidden_states(batch, nullptr), plain);
  {
    const PackedInference inference(model);
    EXPECT_EQ(model.linear({0}).packed != nullptr, has_bf16_kernels());
    model.logits(model.hidden_states(batch, nullptr), packed);
  }
  EXPECT_EQ(model.linear({0}).packed, nullptr);
  EXPECT_EQ(model.weights().packed_head, nullptr);
  EXPECT_LT(distance(torch::tensor(packed), torch::tensor(plain)), 1.0 / 32);
  std::vector<float> again(plain.size());
  model.logits(model.hidden_states(batch, nullptr), again);
  EXPECT_EQ(again, plain);
}

}  // namespace
}  // namespace spear
