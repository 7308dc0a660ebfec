// Counts allocations: a step of the engine must not make any once its buffers have seen their largest step.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/engine.h"
#include "engine/synthetic_table.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}  // namespace

#if !defined(SPEAR_SANITIZED)  // sanitizers replace these themselves
void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // GCC does not see that both are replaced
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#pragma GCC diagnostic pop
#endif

namespace spear {
namespace {

class FixedModel final : public PagedModel {
 public:
  struct Cache final : PagedKvCache {
    std::int64_t block_size() const override { return 4; }
    std::int64_t num_blocks() const override { return 60; }
    std::int64_t bytes() const override { return 0; }
  };

  FixedModel() {
    config_.vocab_size = 500;
    config_.hidden_size = 1;
    config_.max_position_embeddings = 1000;
  }
  const ModelConfig& config() const override { return config_; }
  std::int64_t block_size() const override { return 4; }
  std::int64_t block_bytes(KvCacheType) const override { return 0; }
  std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t, KvCacheType) override {
    return std::make_unique<Cache>();
  }
  std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache&) override {
    std::size_t rows = 0;
    for (const auto& chunk : chunks) rows += chunk.tokens.size();
    return std::span(hidden_).first(rows);
  }
  void logits(std::span<const float>, std::span<float> out) override {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>((i * 37 + ++calls_) % 11);
  }

 private:
  ModelConfig config_;
  std::array<float, 100> hidden_{};
  std::size_t calls_ = 0;
};

void steps_make_none(Engine& engine) {
  engine.add({{1, 2, 3}, 60, {}, {}});
  engine.add({{1, 2, 3, 4, 5}, 60, {.temperature = 1, .top_p = 0.9, .repetition_penalty = 1.2}, {}});
  engine.add({{5}, 60, {.temperature = 1, .top_k = 20, .logprobs = 5}, {}});
  engine.add({{6}, 60, {.temperature = 1, .min_p = 0.1, .logit_bias = {{3, 1.0F}}}, {}});
  for (int i = 0; i < 5; ++i) engine.step();
  const auto before = allocations.load();
  for (int i = 0; i < 45; ++i) EXPECT_EQ(engine.step().size(), 4U);
#if defined(SPEAR_SANITIZED)
  GTEST_SKIP() << "nothing was counted";
#endif
  EXPECT_EQ(allocations.load() - before, 0);
}

TEST(AllocationTest, StepsMakeNone) {
  FixedModel model;
  const TokenBudgetPolicy policy(16);
  Engine engine(model, policy, {.num_blocks = 60});
  steps_make_none(engine);
}

TEST(AllocationTest, NorDoObjectives) {
  FixedModel model;
  LatencyModel latency(testing::synthetic_table());
  EngineOptions options{.num_blocks = 60};
  options.scheduler.max_batched_tokens = 16;
  options.scheduler.shed_compensators = true;
  Engine engine(model, latency, options);
  steps_make_none(engine);
}

}  // namespace
}  // namespace spear
