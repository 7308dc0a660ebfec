#include "eval/row_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "fake_model.h"

namespace spear {
namespace {

std::vector<float> random_row(std::size_t size, std::uint64_t seed, double spread, double offset) {
  Random random(seed);
  std::vector<float> row(size);
  for (float& v : row) v = static_cast<float>(offset + spread * random.normal());
  return row;
}

TEST(RowScores, AgreeWithFloat64) {
  for (const std::size_t size : {1UL, 2UL, 15UL, 16UL, 17UL, 1023UL, 1024UL, 1025UL, 49152UL}) {
    for (const double spread : {0.0, 0.5, 5.0, 40.0}) {
      for (const double offset : {0.0, -300.0, 1000.0}) {
        const auto a = random_row(size, size, spread, offset);
        auto b = a;
        Random noise(7);
        for (float& v : b) v += static_cast<float>(0.3 * spread * noise.normal());
        const auto log_p = log_softmax(a), log_q = log_softmax(b);
        double kl = 0, scale = 0;
        for (std::size_t i = 0; i < size; ++i) {
          kl += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
          scale += std::exp(log_p[i]) * std::fabs(log_p[i] - log_q[i]);
        }
        const auto place = static_cast<std::size_t>(std::max_element(b.begin(), b.end()) - b.begin());
        const RowScore score = score_row(b);
        EXPECT_EQ(score.top, static_cast<std::int32_t>(place));
        EXPECT_NEAR(score.log_sum_exp, static_cast<double>(b[place]) - log_q[place], 1e-6) << size << " " << spread;
        const RowDivergence divergence = compare_rows(a, b);
        EXPECT_NEAR(divergence.kl, kl, 1e-6 * scale + 5e-7) << size << " " << spread << " " << offset;
        EXPECT_EQ(divergence.model.log_sum_exp, score.log_sum_exp);
        EXPECT_EQ(divergence.reference.log_sum_exp, score_row(a).log_sum_exp);
        EXPECT_EQ(divergence.model.top, score.top);
      }
    }
  }
}

TEST(RowScores, IdenticalRowsDoNotDiverge) {
  const auto row = random_row(49152, 3, 3.0, 5.0);
  EXPECT_NEAR(compare_rows(row, row).kl, 0.0, 1e-12);
}

TEST(RowScores, AShiftOfAllLogitsIsNoDivergence) {
  const auto row = random_row(5000, 4, 3.0, 0.0);
  auto shifted = row;
  for (float& v : shifted) v += 64.0F;  // exact to 2^-17
  EXPECT_NEAR(compare_rows(row, shifted).kl, 0.0, 1e-6);
}

TEST(RowScores, FirstOfEqualLogitsIsTop) {
  std::vector<float> row(100, 1.0F);
  row[40] = row[80] = 2.0F;
  EXPECT_EQ(score_row(row).top, 40);
}

TEST(RowScores, NotFiniteLogitsShow) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const std::size_t place : {0UL, 5UL, 99UL}) {
      std::vector<float> good(100, 1.0F), row = good;
      row[place] = bad;
      EXPECT_FALSE(std::isfinite(score_row(row).log_sum_exp)) << bad << " at " << place;
      EXPECT_FALSE(std::isfinite(compare_rows(good, row).kl)) << bad << " at " << place;
      EXPECT_FALSE(std::isfinite(compare_rows(row, good).kl)) << bad << " at " << place;
    }
  }
}

TEST(RowScores, MaskedLogitsHaveNoProbability) {
  std::vector<float> row(64, -std::numeric_limits<float>::infinity());
  row[3] = row[9] = 0.5F;
  EXPECT_NEAR(score_row(row).log_sum_exp, 0.5 + std::log(2.0), 1e-6);
}

}  // namespace
}  // namespace spear
