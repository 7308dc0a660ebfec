#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

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

TEST(SamplerTest, LargeVocabulariesKeepTheSameSets) {
  // 20,000 logits, most of them close together: more candidates than are sorted.
  std::vector<float> logits;
  Random random(5);
  for (int i = 0; i < 20000; ++i) logits.push_back(static_cast<float>(0.2 * random.normal()));
  std::vector<std::pair<double, std::int32_t>> order;
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    order.emplace_back(-std::exp(static_cast<double>(logits[i])), static_cast<std::int32_t>(i));
    sum -= order.back().first;
  }
  std::sort(order.begin(), order.end());
  for (const double top_p : {0.05, 0.5, 0.9}) {
    std::set<std::int32_t> kept;
    double reached = 0;
    for (const auto& [weight, token] : order) {
      if (reached >= top_p * sum * (1 + 1e-5)) break;
      kept.insert(token);
      reached -= weight;
    }
    Sampler sampler({.temperature = 1.0, .top_p = top_p, .seed = 3});
    std::set<std::int32_t> seen;
    for (int i = 0; i < 400; ++i) {
      const auto token = sampler.next(logits);
      EXPECT_TRUE(kept.contains(token)) << top_p;
      seen.insert(token);
    }
    EXPECT_GT(seen.size(), 250U) << top_p;
  }
  Sampler large({.temperature = 1.0, .top_k = 3000, .seed = 4});
  std::set<std::int32_t> likeliest;
  for (std::size_t i = 0; i < 3000; ++i) likeliest.insert(order[i].second);
  for (int i = 0; i < 300; ++i) EXPECT_TRUE(likeliest.contains(large.next(logits)));
}

TEST(SamplerTest, FiltersCombine) {
  // top-k first, then top-p of what is left, then min-p.
  expect_near(shares({.temperature = 1.0, .top_k = 3, .top_p = 0.8}), softmax({1, 4}, 1.0));
  expect_near(shares({.temperature = 1.0, .top_k = 4, .min_p = 0.3}), softmax({1, 2, 4}, 1.0));
  expect_near(shares({.temperature = 1.0, .top_p = 0.99, .min_p = 0.3}), softmax({1, 2, 4}, 1.0));
}

TEST(SamplerTest, ExtremeTemperatures) {
  for (const double temperature : {1e-30, 1e-300, 1e-6}) {
    Sampler sampler({.temperature = temperature, .seed = 1});
    for (int i = 0; i < 20; ++i) {
      const auto token = sampler.next(kLogits);
      EXPECT_TRUE(token == 1 || token == 4);  // both are the largest
    }
  }
  EXPECT_EQ(shares({.temperature = 1e30}).size(), 5U);
}

TEST(SamplerTest, PenaltiesCountWhatWasSeen) {
  const std::vector<float> logits{1.0F, 1.5F, -1.0F, 0.5F};
  Sampler repetition({.repetition_penalty = 2.0});
  repetition.add_prompt(std::vector<std::int32_t>{1}, 4);
  EXPECT_EQ(repetition.next(logits), 0);  // 1.5 / 2 < 1
  EXPECT_EQ(repetition.next(logits), 1);  // 1 / 2 < 1.5 / 2
  EXPECT_EQ(repetition.next(logits), 1);
  Sampler frequency({.frequency_penalty = 0.3});
  std::vector<std::int32_t> out;
  for (int i = 0; i < 6; ++i) out.push_back(frequency.next(logits));
  EXPECT_EQ(out, (std::vector<std::int32_t>{1, 1, 0, 1, 0, 1}));
  Sampler presence({.presence_penalty = 0.7});
  presence.add_prompt(std::vector<std::int32_t>{1, 1}, 4);  // the prompt does not count
  EXPECT_EQ(presence.next(logits), 1);
  EXPECT_EQ(presence.next(logits), 0);
  EXPECT_EQ(presence.next(logits), 1);  // once, however often
  Sampler negative({.repetition_penalty = 2.0});
  negative.add_prompt(std::vector<std::int32_t>{0, 1}, 2);
  EXPECT_EQ(negative.next(std::vector<float>{-1.0F, -1.5F}), 0);  // -2 and -3
  EXPECT_THROW(negative.add_prompt(std::vector<std::int32_t>{2}, 2), Error);
}

TEST(SamplerTest, BiasMovesLogits) {
  EXPECT_EQ(Sampler({.logit_bias = {{3, 100.0F}}}).next(kLogits), 3);
  EXPECT_EQ(Sampler({.logit_bias = {{1, -1.0F}}}).next(kLogits), 4);
  auto expected = softmax({0, 2, 3, 4}, 1.0);
  expect_near(shares({.temperature = 1.0, .logit_bias = {{1, -100.0F}}}), expected);
  EXPECT_THROW(Sampler({.logit_bias = {{6, 1.0F}}}).next(kLogits), Error);
}

TEST(SamplerTest, LogprobsAreTheModelsOwn) {
  const auto p = softmax({0, 1, 2, 3, 4}, 1.0);
  Sampler sampler({.logit_bias = {{3, 100.0F}}, .logprobs = 3});
  EXPECT_EQ(sampler.next(kLogits), 3);
  const auto found = sampler.logprobs();
  ASSERT_EQ(found.size(), 4U);
  const std::int32_t order[] = {3, 1, 4, 2};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(found[i].token, order[i]);
    EXPECT_NEAR(found[i].logprob, std::log(p.at(order[i])), 1e-5);
  }
  EXPECT_TRUE(Sampler({}).logprobs().empty());
}

TEST(SamplerTest, RefusesWhatMakesNoSense) {
  EXPECT_THROW(Sampler({.temperature = -1}), Error);
  EXPECT_THROW(Sampler({.temperature = std::nan("")}), Error);
  EXPECT_THROW(Sampler({.top_k = -1}), Error);
  EXPECT_THROW(Sampler({.top_p = 0}), Error);
  EXPECT_THROW(Sampler({.min_p = 1.5}), Error);
  EXPECT_THROW(Sampler({.repetition_penalty = 0}), Error);
  EXPECT_THROW(Sampler({.frequency_penalty = 2.5}), Error);
  EXPECT_THROW(Sampler({.presence_penalty = -2.5}), Error);
  EXPECT_THROW(Sampler({.logit_bias = {{-1, 0.0F}}}), Error);
  EXPECT_THROW(Sampler({.logit_bias = {{0, 101.0F}}}), Error);
  EXPECT_THROW(Sampler({.logprobs = 21}), Error);
  EXPECT_THROW(Sampler({}).next(std::vector<float>{0.0F, std::nanf("")}), Error);
  EXPECT_THROW(Sampler({}).next(std::vector<float>{0.0F, INFINITY}), Error);
  EXPECT_THROW(Sampler({}).next(std::vector<float>{-INFINITY}), Error);
}

}  // namespace
}  // namespace spear
