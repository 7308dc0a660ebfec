// The engine over the real kernels: a small random model.
#include <gtest/gtest.h>

#include <map>

#include "engine/engine.h"
#include "ops/cpu_model.h"
#include "ops/random_model.h"

namespace spear {
namespace {

using testing::random_model;
using testing::random_tokens;
using Tokens = std::vector<std::int32_t>;

ModelWeights weights() {
  testing::RandomModelOptions options;
  options.compensators = true;
  ModelWeights out = random_model(options);
  out.config.max_position_embeddings = 600;
  return out;
}

std::map<RequestId, Tokens> run(Engine& engine) {
  std::map<RequestId, Tokens> out;
  while (!engine.idle()) {
    for (const StepOutput& output : engine.step()) out[output.id].push_back(output.token);
  }
  return out;
}

/// Greedy continuation by ForwardModel, without any cache.
Tokens continuation(CpuModel& model, Tokens tokens, int count) {
  Tokens out;
  const auto hidden_size = static_cast<std::size_t>(model.config().hidden_size);
  std::vector<float> logits(static_cast<std::size_t>(model.config().vocab_size));
  for (int i = 0; i < count; ++i) {
    const auto hidden = model.hidden_states({tokens, 1, static_cast<std::int64_t>(tokens.size())}, nullptr);
    model.logits(std::span(hidden).last(hidden_size), logits);
    out.push_back(static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    tokens.push_back(out.back());
  }
  return out;
}

TEST(CpuEngineTest, GreedyTokensAreThoseOfTheForwardPass) {
  CpuModel model(weights(), {2, true});
  const TokenBudgetPolicy policy(20);
  Engine engine(model, policy, {.num_blocks = 40, .kv_cache_type = KvCacheType::f32});
  std::map<RequestId, Tokens> expected;
  for (const std::int64_t length : {3, 70, 33, 1, 300}) {
    const auto prompt = random_tokens(length, 61, static_cast<std::uint64_t>(length));
    expected[engine.add({prompt, 12, {}, {}})] = continuation(model, prompt, 12);
  }
  EXPECT_EQ(run(engine), expected);
  EXPECT_EQ(engine.stats().free_blocks, 40);
}

TEST(CpuEngineTest, CompanyBudgetsThreadsAndPreemptionDoNotChangeTheTokens) {
  for (const KvCacheType type : {KvCacheType::bf16, KvCacheType::int8}) {
    std::map<std::uint64_t, Tokens> expected;
    std::int64_t preemptions = 0;
    for (const int threads : {1, 3}) {
      CpuModel model(weights(), {threads, true});
      for (const std::int64_t budget : {1, 7, 16, 33, 200}) {
        for (const std::int64_t blocks : {60, 9}) {
          const TokenBudgetPolicy policy(budget);
          Engine engine(model, policy, {.num_blocks = blocks, .kv_cache_type = type, .max_num_seqs = 8});
          for (std::uint64_t i = 0; i < 6; ++i) {
            engine.add(
                {random_tokens(5 + 7 * static_cast<std::int64_t>(i), 61, i), 60, {.temperature = 1.0, .seed = i}, {}});
          }
          const auto found = run(engine);
          if (expected.empty()) expected = found;
          EXPECT_EQ(found, expected) << name(type) << ": " << threads << " threads, budget " << budget << ", "
                                     << blocks;
          preemptions += engine.stats().preemptions;
          EXPECT_EQ(engine.stats().free_blocks, blocks);
        }
      }
    }
    EXPECT_GT(preemptions, 0);
  }
}

}  // namespace
}  // namespace spear
