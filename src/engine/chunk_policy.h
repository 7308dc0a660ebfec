// How many prompt tokens a step may take beside its decodes: the engine asks, a policy decides.
#pragma once

#include <algorithm>
#include <cstdint>

namespace spear {

/// What the next step has before it.
struct StepLoad {
  std::int64_t decodes = 0;          ///< requests that get one token each, in any case
  std::int64_t decode_context = 0;   ///< sum of their tokens in the KV cache
  std::int64_t prefill_tokens = 0;   ///< of admitted prompts, not computed yet
  std::int64_t prefill_context = 0;  ///< tokens in the KV cache of the prompt that is next
  std::int64_t waiting = 0;          ///< requests that are not admitted yet
};

class ChunkPolicy {
 public:
  virtual ~ChunkPolicy() = default;

  /// Most prompt tokens of the next step, >= 0. With 0 the decodes go alone; a step without decodes takes at least
  /// one prompt token, so that the engine always moves.
  virtual std::int64_t prefill_tokens(const StepLoad& load) const = 0;
};

/// Decodes and prompt tokens together never exceed `max_batched_tokens`, as long as the decodes alone do not.
class TokenBudgetPolicy final : public ChunkPolicy {
 public:
  explicit TokenBudgetPolicy(std::int64_t max_batched_tokens) : budget_(max_batched_tokens) {}
  std::int64_t prefill_tokens(const StepLoad& load) const override {
    return std::max<std::int64_t>(budget_ - load.decodes, 0);
  }

 private:
  std::int64_t budget_;
};

}  // namespace spear
