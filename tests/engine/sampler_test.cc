#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"

namespace spear {
namespace {

const std::vector<float> kLogits{0.0F, 2.0F, 1.0F, -1.0F, 2.0F, -std::numeric_limits<float>::infinity()};

/// Share of each token in many draws.
std::map<std::int32_t, double> shares(const SamplingOptions& options, const std::vector<float>& logits = kLogits) {
  constexpr int kDraws = 40000;
  Sampler sampler(options);
  std::map<std::int32_t, double> out;
  for (int i = 0; i < kDraws; ++i) out[sampler.next(logits)] += 1;
  for (auto& [token, count] : out) count /= kDraws;
  return out;
}

/// exp(logit / temperature) of the tokens, normalized.
std::map<std::int32_t, double> softmax(std::vector<std::int32_t> tokens, double temperature) {
  std::map<std::int32_t, double> out;
  double sum = 0;
  for (const auto token : tokens) sum += out[token] = std::exp(kLogits[static_cast<std::size_t>(token)] / temperature);
  for (auto& [token, p] : out) p /= sum;
  return out;
}

void expect_near(const std::map<std::int32_t, double>& found, const std::map<std::int32_t, double>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [token, p] : expected) EXPECT_NEAR(found.at(token), p, 4 * std::sqrt(p * (1 - p) / 40000)) << token;
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(Sampler({}).next(kLogits), 1);
  EXPECT_EQ(Sampler({}).next(std::vector<float>{-3.0F}), 0);
}

TEST(SamplerTest, DrawsFollowTheDistribution) {
  expect_near(shares({.temperature = 1.0}), softmax({0, 1, 2, 3, 4}, 1.0));
  expect_near(shares({.temperature = 0.5, .seed = 3}), softmax({0, 1, 2, 3, 4}, 0.5));
}

TEST(SamplerTest, FiltersKeepTheLikeliest) {
  expect_near(shares({.temperature = 1.0, .top_k = 3}), softmax({1, 2, 4}, 1.0));
  expect_near(shares({.temperature = 1.0, .top_k = 1}), {{1, 1.0}});
  // Probabilities are 0.38, 0.38, 0.14, 0.05, 0.02.
  expect_near(shares({.temperature = 1.0, .top_p = 0.7}), softmax({1, 4}, 1.0));
  expect_near(shares({.temperature = 1.0, .top_p = 0.8}), softmax({1, 2, 4}, 1.0));
  expect_near(shares({.temperature = 1.0, .top_p = 1e-9}), {{1, 1.0}});
  expect_near(shares({.temperature = 1.0, .min_p = 0.3}), softmax({1, 2, 4}, 1.0));
  expect_near(shares({.temperature = 1.0, .min_p = 1.0}), softmax({1, 4}, 1.0));
}

TEST(SamplerTest, TheSeedDecides) {
  const auto draw = [](std::uint64_t seed) {
    Sampler sampler({.temperature = 2.0, .seed = seed});
    std::vector<std::int32_t> out;
    for (int i = 0; i < 50; ++i) out.push_back(sampler.next(kLogits));
    return out;
  };
  EXPECT_EQ(draw(7), draw(7));
  EXPECT_NE(draw(7), draw(8));
}

TEST(SamplerTest, RefusesWhatMakesNoSense) {
  EXPECT_THROW(Sampler({.temperature = -1}), Error);
  EXPECT_THROW(Sampler({.temperature = std::nan("")}), Error);
  EXPECT_THROW(Sampler({.top_k = -1}), Error);
  EXPECT_THROW(Sampler({.top_p = 0}), Error);
  EXPECT_THROW(Sampler({.min_p = 1.5}), Error);
  EXPECT_THROW(Sampler({}).next(std::vector<float>{0.0F, std::nanf("")}), Error);
  EXPECT_THROW(Sampler({}).next(std::vector<float>{0.0F, INFINITY}), Error);
  EXPECT_THROW(Sampler({}).next(std::vector<float>{-INFINITY}), Error);
}

}  // namespace
}  // namespace spear
