// Steps of an engine, as the profiles time them: sequences that decode and a chunk of a prompt, over a warm cache.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/random.h"
#include "engine/scheduler/latency_table.h"
#include "ops/cpu_model.h"

namespace spear {

/// `decodes` sequences behind `context` tokens each, and a chunk behind `prefill_context`.
struct TimedStep {
  static constexpr std::int64_t kShortContext = 32;

  std::int64_t decodes = 0, context = kShortContext, prefill = 0, prefill_context = 0;
  double density = 1;

  StepShape shape() const {
    return {decodes, decodes * context, prefill, static_cast<double>(prefill_context), density};
  }
};

/// The largest steps that will be asked for.
struct StepLimits {
  std::int64_t decodes = 32, chunk = 512, context = 2048;
};

class StepTimer {
 public:
  StepTimer(CpuModel& model, KvCacheType kv_cache_type, const StepLimits& limits, std::uint64_t seed);

  std::int64_t max_context() const { return max_context_; }  ///< what the model's positions leave of limits.context
  /// Milliseconds of one step with random tokens, logits included.
  double run(const TimedStep& step);
  Random& random() { return random_; }

 private:
  CpuModel& model_;
  Random random_;
  std::int64_t size_, max_context_ = 0, pool_ = 0;
  std::unique_ptr<PagedKvCache> cache_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<SequenceChunk> chunks_;
  std::vector<float> logits_;
};

}  // namespace spear
