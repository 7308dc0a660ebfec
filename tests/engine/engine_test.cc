#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/hash_model.h"
#include "engine/synthetic_table.h"

namespace spear {
namespace {

using testing::HashModel;
using Tokens = std::vector<std::int32_t>;

Tokens random_prompt(std::int64_t length, std::uint64_t seed) {
  Random random(seed);
  Tokens out;
  for (std::int64_t i = 0; i < length; ++i) out.push_back(static_cast<std::int32_t>(random.below(101)));
  return out;
}

struct Outcome {
  Tokens tokens;
  std::optional<FinishReason> finished;
  std::vector<std::vector<TokenLogprob>> logprobs;
};

/// Steps until nothing is left to do; more requests may be added by `between`, which is called before every step.
std::map<RequestId, Outcome> run(Engine& engine, const std::function<void()>& between = {}) {
  std::map<RequestId, Outcome> outcomes;
  for (int i = 0; i < 100000; ++i) {
    if (between) between();
    if (engine.idle()) return outcomes;
    for (const StepOutput& output : engine.step()) {
      Outcome& outcome = outcomes[output.id];
      EXPECT_FALSE(outcome.finished) << "something came after the end";
      if (output.token >= 0) outcome.tokens.push_back(output.token);
      if (!output.logprobs.empty()) outcome.logprobs.emplace_back(output.logprobs.begin(), output.logprobs.end());
      outcome.finished = output.finished;
    }
  }
  ADD_FAILURE() << "the engine does not come to an end";
  return outcomes;
}

/// The request alone, with room for everything: what any other run has to equal.
Outcome plain(const Request& request) {
  HashModel model;
  const TokenBudgetPolicy policy(1000);
  Engine engine(model, policy, {.num_blocks = 100, .prefix_caching = false});
  const RequestId id = engine.add(request);
  return run(engine)[id];
}

Request random_request(Random& random) {
  Request request;
  // A few beginnings, so that prefixes are shared.
  request.prompt = random_prompt(static_cast<std::int64_t>(random.below(12)), random.below(3));
  const auto tail = random_prompt(1 + static_cast<std::int64_t>(random.below(10)), random.next());
  request.prompt.insert(request.prompt.end(), tail.begin(), tail.end());
  request.max_tokens = 1 + static_cast<std::int64_t>(random.below(20));
  request.sampling.temperature = random.below(2) == 0 ? 0.0 : 0.8;
  request.sampling.seed = random.next();
  request.sampling.repetition_penalty = random.below(3) == 0 ? 1.3 : 1.0;
  request.stop_token_ids = {3, 50};
  return request;
}

TEST(EngineTest, OneRequestComesToItsEnd) {
  HashModel model;
  const TokenBudgetPolicy policy(16);
  Engine engine(model, policy, {.num_blocks = 20});
  const RequestId id = engine.add({random_prompt(21, 1), 7, {}, {}});
  const auto outcome = run(engine)[id];
  EXPECT_EQ(outcome.tokens.size(), 7U);
  EXPECT_EQ(outcome.finished, FinishReason::length);
  EXPECT_EQ(model.steps, 2 + 6);  // a prompt of 16 + 5, whose end gives the first token
  const auto stats = engine.stats();
  EXPECT_EQ(stats.free_blocks, 20);
  EXPECT_EQ(stats.prompt_tokens, 21);
  EXPECT_EQ(stats.generation_tokens, 7);
  EXPECT_TRUE(engine.step().empty());
}

TEST(EngineTest, EndTokensAreNotPartOfTheOutput) {
  const Request request{random_prompt(5, 2), 30, {}, {}};
  const auto all = plain(request).tokens;
  Request ending = request;
  ending.stop_token_ids = {all[4]};
  const auto outcome = plain(ending);
  const auto first = std::find(all.begin(), all.end(), all[4]);
  EXPECT_EQ(outcome.tokens, Tokens(all.begin(), first));
  EXPECT_EQ(outcome.finished, FinishReason::eos);
}

TEST(EngineTest, DecodesGoOnWhileAPromptIsRead) {
  HashModel model;
  const TokenBudgetPolicy policy(8);
  Engine engine(model, policy, {.num_blocks = 60});
  engine.add({random_prompt(3, 3), 100, {}, {}});
  engine.step();
  engine.add({random_prompt(60, 4), 1, {}, {}});
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(engine.step().size(), 1U);  // a token in every step
    EXPECT_EQ(model.rows, 8);             // beside 7 of the prompt
  }
}

TEST(EngineTest, ThePolicyDecidesTheChunk) {
  struct Recorder final : ChunkPolicy {
    std::int64_t prefill_tokens(const StepLoad& load) const override {
      loads.push_back(load);
      return chunk;
    }
    mutable std::vector<StepLoad> loads;
    std::int64_t chunk = 5;
  } policy;
  HashModel model;
  Engine engine(model, policy, {.num_blocks = 60});
  engine.add({random_prompt(12, 5), 50, {}, {}});
  engine.step();
  EXPECT_EQ(model.rows, 5);
  EXPECT_EQ(policy.loads.back().waiting, 1);
  engine.step();
  EXPECT_EQ(policy.loads.back().prefill_tokens, 7);
  EXPECT_EQ(policy.loads.back().prefill_context, 5);
  policy.chunk = 0;
  engine.step();
  EXPECT_EQ(model.rows, 1);  // nothing else runs: the prompt moves on
  policy.chunk = 100;
  engine.step();
  EXPECT_EQ(model.rows, 1);
  engine.add({random_prompt(9, 6), 5, {}, {}});
  policy.chunk = 0;
  engine.step();
  EXPECT_EQ(model.rows, 1);
  EXPECT_EQ(policy.loads.back().decodes, 1);
  EXPECT_EQ(policy.loads.back().decode_context, 12);  // the new token is not computed yet
  policy.chunk = 4;
  engine.step();
  EXPECT_EQ(model.rows, 1 + 4);
}

TEST(EngineTest, KnownPrefixesAreNotComputedAgain) {
  HashModel model;
  const TokenBudgetPolicy policy(1000);
  Engine engine(model, policy, {.num_blocks = 60});
  const Request request{random_prompt(22, 7), 3, {}, {}};
  const auto expected = plain(request);
  const auto first = engine.add(request);
  EXPECT_EQ(run(engine)[first].tokens, expected.tokens);
  const auto second = engine.add(request);
  engine.step();
  EXPECT_EQ(model.rows, 2);  // five blocks of four are known
  EXPECT_EQ(run(engine)[second].tokens.size(), 2U);
  EXPECT_EQ(engine.stats().prefix_hits, 20);

  Request whole = request;  // a multiple of the block: one token has to be computed all the same
  whole.prompt.resize(20);
  engine.add(whole);
  engine.step();
  EXPECT_EQ(model.rows, 4);
  run(engine);
  EXPECT_EQ(engine.stats().free_blocks, 60);
}

TEST(EngineTest, PreemptedRequestsGiveTheSameTokens) {
  HashModel model;
  const TokenBudgetPolicy policy(64);
  Engine engine(model, policy, {.num_blocks = 12, .prefix_caching = false});
  std::map<RequestId, Outcome> expected;
  for (std::uint64_t i = 0; i < 4; ++i) {
    const Request request{random_prompt(8, 20 + i), 24, {.temperature = 1.0, .seed = i}, {}};
    expected[engine.add(request)] = plain(request);
  }
  const auto outcomes = run(engine);
  EXPECT_GT(engine.stats().preemptions, 0);
  for (const auto& [id, outcome] : expected) EXPECT_EQ(outcomes.at(id).tokens, outcome.tokens);
  EXPECT_EQ(engine.stats().free_blocks, 12);
}

TEST(EngineTest, CancelledRequestsLetGoAtOnce) {
  HashModel model;
  const TokenBudgetPolicy policy(64);
  Engine engine(model, policy, {.num_blocks = 30, .max_num_seqs = 1});
  const auto running = engine.add({random_prompt(9, 30), 50, {}, {}});
  const auto waiting = engine.add({random_prompt(9, 31), 50, {}, {}});
  engine.step();
  EXPECT_LT(engine.stats().free_blocks, 30);
  EXPECT_TRUE(engine.cancel(running));
  EXPECT_TRUE(engine.cancel(waiting));
  EXPECT_FALSE(engine.cancel(waiting));
  EXPECT_FALSE(engine.cancel(99));
  EXPECT_EQ(engine.stats().free_blocks, 30);
  const auto outputs = engine.step();
  ASSERT_EQ(outputs.size(), 2U);
  for (const auto& output : outputs) EXPECT_EQ(output.finished, FinishReason::cancelled);
  EXPECT_TRUE(engine.idle());
}

TEST(EngineTest, ABrokenRequestDoesNotEndTheOthers) {
  class Poisoned final : public PagedModel {
   public:
    const ModelConfig& config() const override { return inner.config(); }
    std::int64_t block_size() const override { return inner.block_size(); }
    std::int64_t block_bytes(KvCacheType type) const override { return inner.block_bytes(type); }
    std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t blocks, KvCacheType type) override {
      return inner.make_paged_cache(blocks, type);
    }
    std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) override {
      return inner.step(chunks, cache);
    }
    void logits(std::span<const float> hidden, std::span<float> out) override {
      inner.logits(hidden, out);
      if (hidden.size() > 4) out[101] = NAN;  // the second request's
    }
    HashModel inner;
  } model;
  const TokenBudgetPolicy policy(64);
  Engine engine(model, policy, {.num_blocks = 30});
  const Request request{random_prompt(9, 40), 5, {}, {}};
  const auto good = engine.add(request), bad = engine.add({random_prompt(5, 41), 5, {}, {}});
  const auto outcomes = run(engine);
  EXPECT_EQ(outcomes.at(bad).finished, FinishReason::failed);
  EXPECT_EQ(outcomes.at(good).tokens, plain(request).tokens);
  EXPECT_EQ(engine.stats().free_blocks, 30);
}

TEST(EngineTest, LogprobsBelongToTheToken) {
  HashModel model;
  const TokenBudgetPolicy policy(64);
  Engine engine(model, policy, {.num_blocks = 30});
  const auto id = engine.add({random_prompt(9, 50), 5, {.logprobs = 2}, {}});
  const auto outcome = run(engine)[id];
  ASSERT_EQ(outcome.logprobs.size(), 5U);
  for (std::size_t i = 0; i < 5; ++i) {
    ASSERT_EQ(outcome.logprobs[i].size(), 3U);
    EXPECT_EQ(outcome.logprobs[i][0].token, outcome.tokens[i]);
    EXPECT_EQ(outcome.logprobs[i][1].token, outcome.tokens[i]);  // greedy: it is the likeliest
    EXPECT_GE(outcome.logprobs[i][1].logprob, outcome.logprobs[i][2].logprob);
  }
}

TEST(EngineTest, RefusesWhatCanNeverRun) {
  HashModel model;
  const TokenBudgetPolicy policy(64);
  Engine engine(model, policy, {.num_blocks = 5});
  const auto code_of = [&](const Request& request) {
    try {
      engine.add(request);
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  EXPECT_EQ(code_of({{}, 1, {}, {}}), ExitCode::usage);
  EXPECT_EQ(code_of({{1}, 0, {}, {}}), ExitCode::usage);
  EXPECT_EQ(code_of({random_prompt(200, 1), 1, {}, {}}), ExitCode::usage);
  EXPECT_EQ(code_of({{1, 101}, 1, {}, {}}), ExitCode::bad_input);
  EXPECT_EQ(code_of({{1}, 1, {.logit_bias = {{101, 1.0F}}}, {}}), ExitCode::bad_input);
  EXPECT_EQ(code_of({{1}, 1, {.top_p = 2}, {}}), ExitCode::usage);
  EXPECT_EQ(code_of({random_prompt(20, 1), 2, {}, {}}), ExitCode::out_of_resources);
  EXPECT_EQ(code_of({random_prompt(20, 1), 1, {}, {}}), ExitCode::ok);  // the last token needs no place
  EXPECT_THROW(Engine(model, policy, {}), Error);
}

TEST(EngineTest, DensitiesDoNotShareAPrefix) {
  HashModel model;
  LatencyModel latency(testing::synthetic_table());
  Engine engine(model, latency, {.num_blocks = 60});
  Request all{random_prompt(22, 7), 6, {}, {}}, none = all;
  none.compensator_density = 0;
  const auto expected = plain(all), other = plain(none);
  EXPECT_NE(expected.tokens, other.tokens);
  for (int i = 0; i < 2; ++i) {
    const auto a = engine.add(all), b = engine.add(none);
    const auto outcomes = run(engine);
    EXPECT_EQ(outcomes.at(a).tokens, expected.tokens);
    EXPECT_EQ(outcomes.at(b).tokens, other.tokens);
  }
  EXPECT_EQ(engine.stats().prefix_hits, 40);  // of their like they do
  all.compensator_density = 2;
  EXPECT_THROW(engine.add(all), Error);
}

TEST(EngineTest, WhatCannotComeInTimeIsRefused) {
  HashModel model;
  LatencyModel latency(testing::synthetic_table(), false);
  double time = 0;
  EngineOptions options{.num_blocks = 60};
  options.scheduler.refuse_unattainable = true;
  options.clock = [&time] { return time; };
  Engine engine(model, latency, options);
  Request request{random_prompt(22, 7), 3, {}, {}};
  request.slo.ttft_ms = 50;
  const auto in_time = engine.add(request);
  EXPECT_EQ(run(engine)[in_time].tokens.size(), 3U);
  const auto late = engine.add(request);
  time = 0.049;
  const auto outcomes = run(engine);
  EXPECT_EQ(outcomes.at(late).finished, FinishReason::refused);
  EXPECT_TRUE(outcomes.at(late).tokens.empty());
  EXPECT_EQ(engine.stats().refused, 1);
  EXPECT_EQ(engine.stats().free_blocks, 60);
}

/// Random arrivals, objectives, priorities, densities, cancellations, budgets and cache sizes: every request ends,
/// gives the tokens of a run alone, and no block is lost.
TEST(EngineTest, RandomTraffic) {
  std::int64_t preemptions = 0, hits = 0, cancelled = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed, 9);
    HashModel model;
    const TokenBudgetPolicy policy(1 + static_cast<std::int64_t>(random.below(40)));
    const auto blocks = 11 + static_cast<std::int64_t>(random.below(30));
    LatencyModel latency(testing::synthetic_table());
    double time = 0;
    EngineOptions options{.num_blocks = blocks,
                          .max_num_seqs = 1 + static_cast<std::int64_t>(random.below(9)),
                          .prefix_caching = random.below(4) != 0};
    options.clock = [&] { return time += 0.02 * random.uniform(); };
    options.scheduler.exclusive = random.below(2) == 0;
    std::optional<Engine> held;
    if (seed % 2 == 0) {
      held.emplace(model, policy, options);
    } else {
      held.emplace(model, latency, options);
    }
    Engine& engine = *held;
    std::map<RequestId, Outcome> expected;
    std::vector<RequestId> ids;
    int left = 40;
    const auto outcomes = run(engine, [&] {
      while (left > 0 && random.below(3) == 0) {
        Request request = random_request(random);
        request.priority = static_cast<int>(random.below(3));
        if (random.below(2) == 0) request.slo = {1000 * random.uniform(), 60 * random.uniform()};
        if (random.below(4) == 0) request.compensator_density = random.below(2) == 0 ? 0.0 : 1.0;
        ids.push_back(engine.add(request));
        expected[ids.back()] = plain(request);
        --left;
      }
      if (!ids.empty() && random.below(20) == 0) {
        const RequestId id = ids[random.below(ids.size())];
        if (engine.cancel(id)) {
          expected[id].finished = FinishReason::cancelled;
          ++cancelled;
        }
      }
    });
    ASSERT_EQ(outcomes.size(), expected.size());
    for (const auto& [id, outcome] : expected) {
      const Outcome& found = outcomes.at(id);
      ASSERT_EQ(found.finished, outcome.finished) << "seed " << seed << ", request " << id;
      if (outcome.finished == FinishReason::cancelled) {
        ASSERT_LE(found.tokens.size(), outcome.tokens.size());
        ASSERT_TRUE(std::equal(found.tokens.begin(), found.tokens.end(), outcome.tokens.begin()));
      } else {
        ASSERT_EQ(found.tokens, outcome.tokens) << "seed " << seed << ", request " << id;
      }
    }
    const EngineStats stats = engine.stats();
    ASSERT_EQ(stats.free_blocks, blocks);
    preemptions += stats.preemptions;
    hits += stats.prefix_hits;
  }
  EXPECT_GT(preemptions, 100);  // the traffic was as bad as it was meant to be
  EXPECT_GT(hits, 100);
  EXPECT_GT(cancelled, 100);
}

}  // namespace
}  // namespace spear
