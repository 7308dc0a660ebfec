// Sampling from a model whose distribution is known.
#include "recover/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "ops/random_model.h"

namespace spear {
namespace {

/// Logits depend on the last token alone, whatever else is in the batch.
class MarkovModel : public ForwardModel {
 public:
  MarkovModel() {
    config_.vocab_size = config_.hidden_size = 6;
    Random random(5);
    for (auto& row : table) {
      for (float& value : row) value = static_cast<float>(1.5 * random.normal());
    }
  }
  const ModelConfig& config() const override { return config_; }
  std::unique_ptr<KvCache> make_cache(std::int64_t, std::int64_t) override { return nullptr; }
  std::vector<float> hidden_states(const TokenBatch& tokens, KvCache*) override {
    std::vector<float> out;
    for (const auto token : tokens.tokens)
      out.insert(out.end(), table[static_cast<std::size_t>(token)].begin(),
                 table[static_cast<std::size_t>(token)].end());
    forward_tokens += static_cast<std::int64_t>(tokens.tokens.size());
    return out;
  }
  void logits(std::span<const float> hidden, std::span<float> out) override {
    std::copy(hidden.begin(), hidden.end(), out.begin());
  }

  std::array<std::array<float, 6>, 6> table{};
  std::int64_t forward_tokens = 0;

 private:
  ModelConfig config_;
};

SampleOpenings openings() {
  return {.separator = 2, .first = std::nullopt, .chat = {3, 1, 4}, .plain = [](std::int32_t id) { return id >= 4; }};
}

TEST(SampleTest, DrawsInvertTheCumulativeDistribution) {
  for (const std::int64_t vocab : {1, 3, 1024, 2500}) {
    const auto logits = testing::random_floats(vocab, 6, 3.0);
    std::vector<double> cumulative = {0};
    for (const float l : logits) cumulative.push_back(cumulative.back() + std::exp(static_cast<double>(l)));
    for (double& c : cumulative) c /= cumulative.back();
    Random random(7);
    for (int i = 0; i < 3000; ++i) {
      const double u = i == 0 ? 0.0 : i == 1 ? 1 - 0x1p-53 : random.uniform();
      const auto token = sample_token(logits, u);
      ASSERT_TRUE(token >= 0 && token < vocab);
      EXPECT_LE(cumulative[static_cast<std::size_t>(token)], u + 1e-6);
      if (i == 1) continue;  // in the sliver that rounding leaves at the end, any likely token will do
      EXPECT_GE(cumulative[static_cast<std::size_t>(token) + 1], u - 1e-6);
    }
  }
}

TEST(SampleTest, TransitionsHaveTheModelsProbabilities) {
  MarkovModel model;
  const auto tokens = sample_sequences(model, openings(), {.sequences = 400, .length = 100, .batch = 96, .seed = 1});
  double counts[6][6] = {}, sums[6] = {};
  for (std::size_t row = 0; row < 400; ++row) {
    for (std::size_t i = 3; i < 100; ++i) {
      const auto from = static_cast<std::size_t>(tokens[row * 100 + i - 1]),
                 to = static_cast<std::size_t>(tokens[row * 100 + i]);
      counts[from][to] += 1;
      sums[from] += 1;
    }
  }
  for (std::size_t from = 0; from < 6; ++from) {
    double total = 0, chi = 0;
    for (const float l : model.table[from]) total += std::exp(static_cast<double>(l));
    for (std::size_t to = 0; to < 6; ++to) {
      const double expected = sums[from] * std::exp(static_cast<double>(model.table[from][to])) / total;
      chi += (counts[from][to] - expected) * (counts[from][to] - expected) / expected;
    }
    EXPECT_LT(chi, 25.7) << "from " << from;  // five degrees of freedom: one in 10,000 is above
  }
}

TEST(SampleTest, ASequenceDependsOnItsSeedAndNumberOnly) {
  MarkovModel model;
  const SampleOptions options{.sequences = 21, .length = 17, .batch = 96, .seed = 4};
  const auto whole = sample_sequences(model, openings(), options);
  ASSERT_EQ(whole.size(), 21U * 17U);
  SampleOptions small = options;
  small.batch = 4;
  std::vector<std::vector<std::int32_t>> kept;
  EXPECT_EQ(sample_sequences(model, openings(), small, {},
                             [&](std::span<const std::int32_t> done) { kept.emplace_back(done.begin(), done.end()); }),
            whole);
  ASSERT_EQ(kept.size(), 6U);
  // An interrupted run goes on where it stopped, without sampling anything twice.
  model.forward_tokens = 0;
  EXPECT_EQ(sample_sequences(model, openings(), small, kept[3]), whole);
  EXPECT_EQ(model.forward_tokens, 5 * 16);
  SampleOptions other = options;
  other.seed = 5;
  EXPECT_NE(sample_sequences(model, openings(), other), whole);
  for (std::size_t i = 0; i < 21; ++i) {
    const auto* row = whole.data() + i * 17;
    if (i % 4 == 1) {
      EXPECT_EQ(std::vector<std::int32_t>(row, row + 3), openings().chat);
    } else if (i % 4 == 3) {
      EXPECT_GE(row[0], 4);
    } else {
      EXPECT_EQ(row[0], 2);
    }
  }
  EXPECT_THROW(sample_sequences(model, openings(), {.sequences = 1, .length = 3}), Error);

  SampleOpenings with_first = openings();
  with_first.first = 0;
  const auto begun = sample_sequences(model, with_first, options);
  for (std::size_t i = 0; i < 21; ++i) {
    EXPECT_EQ(begun[i * 17], 0);
    if (i % 4 == 3) {
      EXPECT_EQ(begun[i * 17 + 1], whole[i * 17]);
    }
  }
}

TEST(SampleTest, DistinctNgramsByCounting) {
  CalibrationSet set{4, 30, 1, testing::random_tokens(120, 3, 8)};
  std::set<std::vector<std::int32_t>> seen;
  for (std::size_t row = 0; row < 4; ++row) {
    for (std::size_t i = 0; i + 4 <= 30; ++i)
      seen.insert({set.tokens.begin() + static_cast<long>(row * 30 + i),
                   set.tokens.begin() + static_cast<long>(row * 30 + i + 4)});
  }
  EXPECT_DOUBLE_EQ(distinct_ngrams(set, 4), static_cast<double>(seen.size()) / (4 * 27));
}

}  // namespace
}  // namespace spear
