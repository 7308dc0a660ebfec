#include "base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace spear {
namespace {

TEST(Random, KnownSplitmix64Values) {  // first outputs of splitmix64 seeded with 0, as published with the generator
  EXPECT_EQ(mix64(0), 0xe220a8397b1dcdafULL);
  EXPECT_EQ(mix64(0x9e3779b97f4a7c15ULL), 0x6e789e6aa1b965f4ULL);
}

TEST(Random, SameSeedAndStreamSameNumbers) {
  Random a(7, 3), b(7, 3), other_stream(7, 4), other_seed(8, 3);
  int equal_stream = 0, equal_seed = 0;
  for (int i = 0; i < 1000; ++i) {
    const auto value = a.next();
    ASSERT_EQ(value, b.next());
    equal_stream += value == other_stream.next();
    equal_seed += value == other_seed.next();
  }
  EXPECT_EQ(equal_stream + equal_seed, 0);
}

TEST(Random, MomentsOfUniformAndNormal) {
  Random random(1);
  const int n = 200'000;
  double uniform_sum = 0, normal_sum = 0, normal_squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    uniform_sum += u;
    const double z = random.normal();
    normal_sum += z;
    normal_squares += z * z;
  }
  // Five standard errors.
  EXPECT_NEAR(uniform_sum / n, 0.5, 5 * 0.2887 / std::sqrt(n));
  EXPECT_NEAR(normal_sum / n, 0.0, 5 / std::sqrt(n));
  EXPECT_NEAR(normal_squares / n, 1.0, 5 * std::sqrt(2.0 / n));
}

TEST(Random, BelowStaysInRange) {
  Random random(2);
  std::vector<int> count(7);
  for (int i = 0; i < 70'000; ++i) ++count.at(random.below(7));
  for (const int c : count) EXPECT_NEAR(c, 10'000, 5 * 93);
}

}  // namespace
}  // namespace spear
