#include "eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

TEST(Bootstrap, CoversTheTrueMeanAboutAsOftenAsItSays) {
  for (const int count : {10, 20, 60}) {
    int covered = 0;
    constexpr int kTrials = 600;
    for (int trial = 0; trial < kTrials; ++trial) {
      Random random(static_cast<std::uint64_t>(trial), 99);
      std::vector<double> values;
      for (int i = 0; i < count; ++i) values.push_back(3.0 + random.normal());
      const Interval interval = bootstrap_mean(values, {static_cast<std::uint64_t>(trial), 600});
      covered += interval.low <= 3.0 && 3.0 <= interval.high ? 1 : 0;
    }
    const double coverage = static_cast<double>(covered) / kTrials;
    EXPECT_GT(coverage, 0.92) << count;  // the plain percentile interval reaches 0.90 at 10
    EXPECT_LT(coverage, 0.98) << count;
  }
}

TEST(Bootstrap, IntervalHasTheTextbookWidthForManySamples) {
  Random random(5);
  std::vector<double> values;
  for (int i = 0; i < 4000; ++i) values.push_back(random.normal());
  const Interval interval = bootstrap_mean(values, {1, 4000});
  EXPECT_NEAR(interval.high - interval.low, 2 * 1.96 / std::sqrt(4000.0), 0.05 * 2 * 1.96 / std::sqrt(4000.0));
  EXPECT_GT(interval.value, interval.low);
  EXPECT_LT(interval.value, interval.high);
}

TEST(Bootstrap, PairingRemovesWhatBothShare) {
  Random random(6);
  std::vector<double> a, b;
  for (int i = 0; i < 40; ++i) {
    const double difficulty = 10 * random.normal();
    a.push_back(difficulty + 0.5 + 0.1 * random.normal());
    b.push_back(difficulty);
  }
  const Interval difference = bootstrap_difference(a, b);
  EXPECT_TRUE(difference.excludes_zero());
  EXPECT_NEAR(difference.value, 0.5, 0.1);
  EXPECT_FALSE(bootstrap_difference(a, a).excludes_zero());
  EXPECT_EQ(bootstrap_difference(a, a).high, 0.0);
}

TEST(Bootstrap, SeedDecides) {
  const std::vector<double> values{1, 5, 2, 8, 3, 9, 4};
  EXPECT_EQ(bootstrap_mean(values, {3, 500}).low, bootstrap_mean(values, {3, 500}).low);
  EXPECT_NE(bootstrap_mean(values, {3, 500}).low, bootstrap_mean(values, {4, 500}).low);
}

TEST(Bootstrap, OneSampleHasNoInterval) {
  const Interval interval = bootstrap_mean(std::vector<double>{2.5});
  EXPECT_EQ(interval.value, 2.5);
  EXPECT_TRUE(std::isnan(interval.low) && std::isnan(interval.high));
  EXPECT_FALSE(interval.excludes_zero());
}

TEST(Bootstrap, RefusesNonsense) {
  EXPECT_THROW(bootstrap_mean({}), Error);
  EXPECT_THROW(bootstrap_mean(std::vector<double>{1, 2}, {0, 10}), Error);
  EXPECT_THROW(bootstrap_difference(std::vector<double>{1, 2}, std::vector<double>{1}), Error);
}

TEST(Spearman, KnownValues) {
  // IQ and hours of television, the worked example of many textbooks: -29/165.
  const std::vector<double> iq{106, 100, 86, 101, 99, 103, 97, 113, 112, 110};
  const std::vector<double> tv{7, 27, 2, 50, 28, 29, 20, 12, 6, 17};
  EXPECT_NEAR(spearman(iq, tv), -29.0 / 165.0, 1e-12);
  // numpy: corrcoef of the ranks of [1, 2, 2, 3, 5], [2, 1, 4, 4, 9] = 0.7631578947368421: ties at their mean rank.
  EXPECT_NEAR(spearman(std::vector<double>{1, 2, 2, 3, 5}, std::vector<double>{2, 1, 4, 4, 9}), 0.7631578947368421,
              1e-12);
  EXPECT_NEAR(spearman(std::vector<double>{1, 2, 3}, std::vector<double>{1, 8, 27}), 1.0, 1e-12);
  EXPECT_TRUE(std::isnan(spearman(std::vector<double>{1, 2, 3}, std::vector<double>{4, 4, 4})));
}

}  // namespace
}  // namespace spear
