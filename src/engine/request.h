// What is asked of the engine, and what it answers step by step.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "engine/sampler.h"

namespace spear {

using RequestId = std::uint64_t;

/// eos: an end token; stop: a stop string (found by whoever makes text of tokens); length: max_tokens or the model's
/// last position; interrupted: Ctrl-C; cancelled: by the caller; failed: see StepOutput::error.
enum class FinishReason { eos, stop, length, interrupted, cancelled, failed };

/// "eos", "stop", "length", "interrupted", "cancelled", "failed".
const char* name(FinishReason reason);

struct Request {
  std::vector<std::int32_t> prompt;
  std::int64_t max_tokens = 256;
  SamplingOptions sampling = {};
  std::vector<std::int64_t> stop_token_ids = {};  ///< end the output and are not part of it
};

/// What a step did for one request.
struct StepOutput {
  RequestId id = 0;
  std::int32_t token = -1;  ///< the new token; -1: none (an end token, a cancellation, an error)
  std::optional<FinishReason> finished;
  std::span<const TokenLogprob> logprobs;  ///< of the new token, see Sampler::logprobs
  const Error* error = nullptr;            ///< why, with FinishReason::failed
};

/// Totals since the engine was made, and what it holds now.
struct EngineStats {
  std::int64_t running = 0, waiting = 0;
  std::int64_t num_blocks = 0, free_blocks = 0;
  std::int64_t preemptions = 0;
  std::int64_t prompt_tokens = 0, generation_tokens = 0;
  std::int64_t prefix_queries = 0, prefix_hits = 0;  ///< tokens looked up and found
};

}  // namespace spear
