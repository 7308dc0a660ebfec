#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "base/error.h"

namespace spear {
namespace {

TEST(ElementCount, RefusesNegativeAndHuge) {
  EXPECT_EQ(element_count({}), 1);
  EXPECT_EQ(element_count({3, 0, 5}), 0);
  EXPECT_EQ(element_count({576, 1536}), 884736);
  EXPECT_THROW(element_count({-1, 2}), Error);
  EXPECT_THROW(element_count({std::int64_t{1} << 32, std::int64_t{1} << 32}), Error);
  EXPECT_THROW(element_count({INT64_MAX, 2}), Error);
  EXPECT_EQ(to_string(Shape{2, 3}), "[2, 3]");
}

TEST(Tensor, StartsAtZeroAndKeepsFloats) {
  const Tensor zero(DType::i32, {2, 2});
  for (const auto v : zero.as<std::int32_t>()) EXPECT_EQ(v, 0);
  const std::vector<float> values{1.5F, -2.0F, 0.25F};
  EXPECT_EQ(Tensor::from_floats({3}, values).to_floats(), values);
  EXPECT_THROW(Tensor::from_floats({4}, values), Error);
}

TEST(Tensor, ViewChecksItsSizeAndReadsUnaligned) {
  std::array<std::byte, 9> storage{};
  const float value = 3.25F;
  std::memcpy(storage.data() + 1, &value, sizeof value);
  const auto bytes = std::span<const std::byte>(storage).subspan(1, 4);
  EXPECT_EQ(Tensor(DType::f32, {1}, bytes, nullptr).to_floats(), std::vector<float>{3.25F});
  EXPECT_THROW(Tensor(DType::f32, {2}, bytes, nullptr), Error);
}

TEST(Tensor, ConvertsBetweenFloatTypesOnly) {
  const std::vector<float> values{1.0F, 1.0F + 0x1p-10F, 70000.0F};
  const Tensor f32 = Tensor::from_floats({3}, values);
  EXPECT_EQ(f32.to(DType::f16).to_floats(), (std::vector<float>{1.0F, 1.0F + 0x1p-10F, INFINITY}));
  EXPECT_EQ(f32.to(DType::bf16).to_floats(), (std::vector<float>{1.0F, 1.0F, 70144.0F}));
  EXPECT_EQ(f32.to(DType::f32).bytes().data(), f32.bytes().data()) << "the same type needs no copy";
  EXPECT_THROW(Tensor(DType::i8, {1}).to_floats(), Error);
  EXPECT_THROW(f32.to(DType::i8), Error);
}

TEST(Tensor, ViewKeepsItsOwnerAlive) {
  auto owner = std::make_shared<std::vector<float>>(std::vector<float>{1, 2});
  const Tensor view(DType::f32, {2}, std::as_bytes(std::span(*owner)), owner);
  owner.reset();
  EXPECT_EQ(view.to_floats(), (std::vector<float>{1, 2}));
}

}  // namespace
}  // namespace spear
