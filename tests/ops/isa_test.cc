#include <gtest/gtest.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstring>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/fused_linear.h"
#include "ops/random_model.h"

namespace spear {
namespace {

#if defined(__aarch64__)
TEST(IsaTest, ArmWithDotProductsHasNeonBeforeTheGenericOnes) {
  const bool dot_products = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  std::vector<std::string> names, packed, attention;
  for (const Kernels* table : available_kernels()) {
    names.emplace_back(table->isa);
    packed.emplace_back(packed_kernels(*table).isa);
    attention.emplace_back(attention_kernels_for(table->isa).isa);
  }
  EXPECT_EQ(names,
            dot_products ? std::vector<std::string>({"neon", "generic"}) : std::vector<std::string>({"generic"}));
  EXPECT_EQ(packed, names);
  EXPECT_EQ(attention, names);
}
#endif

/// FNV-1a of the bits of W x for nine tokens; no input depends on a machine's mathematical library.
std::uint64_t hash_of_product(const PackedKernels& kernels, ThreadPool& pool, const PackedView& weight,
                              Activations activations) {
  constexpr std::int64_t kTokens = 9;
  Random random(5);
  std::vector<float> x(static_cast<std::size_t>(kTokens * weight.cols)),
      y(static_cast<std::size_t>(kTokens * weight.rows));
  for (float& value : x) value = static_cast<float>(random.uniform() - 0.5);
  const FusedJob job{&weight, y.data()};
  FusedLinear(kernels, pool).run(activations, x.data(), kTokens, {&job, 1}, {});
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const float value : y) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 0x100000001b3U;
  }
  return hash;
}

struct Hashes {
  const char* format;
  std::uint64_t a8, a16;
};
constexpr Hashes kHashes[] = {{"w4-channel-sym", 0x5dda811cafdc52d9U, 0x72779ff8a7dde892U},
                              {"w4-g32-asym", 0xeb284869d5fe2ef3U, 0xa190c6efb5cd3f72U},
                              {"w4-g128-asym", 0x69af6e808b86a1deU, 0xfa49e55ebc7fbb2bU},
                              {"Q8_0", 0x8fceb12afb80c833U, 0x3fc24fc0e28a0002U},
                              {"Q5_1", 0x188564a44c1d6d8eU, 0xf34eefed8a24ce68U},
                              {"Q4_K", 0x62e9cf9e33006121U, 0x37c3f29196dfb5c2U},
                              {"Q6_K", 0x4a111d9ddccf9db2U, 0x0235da0b4dab4c22U}};

TEST(IsaTest, IntegerWeightsGiveTheSameBitsOnEveryMachine) {
  ThreadPool pool(2);
  WeightArena arena;
  const PackContext context{pool, arena};
  for (const auto& expected : kHashes) {
    const std::string_view format = expected.format;
    const PackedMatrix matrix =
        format.starts_with("w4")
            ? PackedMatrix::from_w4(testing::random_w4(37, 256, parse_scheme(format), 7), "", context)
            : PackedMatrix::from_blocks(testing::random_blocks(37, 256, expected.format, 6), "", context);
    for (const Kernels* table : available_kernels()) {
      const PackedKernels& kernels = packed_kernels(*table);
      EXPECT_EQ(hash_of_product(kernels, pool, matrix.view(), Activations::a8), expected.a8)
          << format << " " << table->isa;
      EXPECT_EQ(hash_of_product(kernels, pool, matrix.view(), Activations::a16), expected.a16)
          << format << " " << table->isa;
    }
  }
}

}  // namespace
}  // namespace spear
