// What is asked of the engine, and what it answers step by step.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "engine/sampler.h"
#include "engine/token_constraint.h"

namespace spear {

using RequestId = std::uint64_t;

/// eos: an end token; stop: a stop string (found by whoever makes text of tokens); length: max_tokens or the model's
/// last position; interrupted: Ctrl-C; cancelled: by the caller; failed: see StepOutput::error; refused: its first
/// token could not come in time (SchedulerOptions::refuse_unattainable).
enum class FinishReason { eos, stop, length, interrupted, cancelled, failed, refused };

/// "eos", "stop", "length", "interrupted", "cancelled", "failed", "refused".
const char* name(FinishReason reason);

/// What a client was promised, in milliseconds; 0: nothing.
struct Slo {
  double ttft_ms = 0;  ///< from the arrival to the first token
  double itl_ms = 0;   ///< between two tokens
};

struct Request {
  std::vector<std::int32_t> prompt;
  std::int64_t max_tokens = 256;
  SamplingOptions sampling = {};
  std::vector<std::int64_t> stop_token_ids = {};  ///< end the output and are not part of it
  /// Log-probabilities of the prompt's own tokens too, with SamplingOptions::logprobs alternatives; the whole prompt
  /// is computed then, whatever is known of its prefix.
  bool prompt_logprobs = false;
  Slo slo = {};
  int priority = 0;                                       ///< higher ones go first
  std::shared_ptr<TokenConstraint> constraint = nullptr;  ///< of the output; one per request
  std::chrono::steady_clock::time_point arrival = {};     ///< when the promise begins; the epoch: when it is added
  /// Exactly this part of the compensators, 0 to 1: such requests never share a step or a prefix with others, so a
  /// server should allow few values. Nothing: what the engine runs at.
  std::optional<double> compensator_density = {};
};

/// What a step did for one request.
struct StepOutput {
  RequestId id = 0;
  std::int32_t token = -1;  ///< the new token; -1: none (an end token, a cancellation, an error)
  std::optional<FinishReason> finished;
  std::span<const TokenLogprob> logprobs;               ///< of the new token, see Sampler::logprobs
  const Error* error = nullptr;                         ///< why, with FinishReason::failed and refused
  std::int64_t cached_tokens = 0;                       ///< of the prompt, found in the prefix cache
  std::chrono::steady_clock::time_point admitted = {};  ///< when its prompt was first scheduled
  /// With its first output, if Request::prompt_logprobs: for each prompt token but the first, see Sampler::logprobs.
  std::span<const std::vector<TokenLogprob>> prompt_logprobs;
  double compensator_density = 1;  ///< the lowest part of the compensators that it was computed with so far
};

/// Totals since the engine was made, and what it holds now.
struct EngineStats {
  std::int64_t running = 0, waiting = 0;
  std::int64_t num_blocks = 0, free_blocks = 0;
  std::int64_t preemptions = 0;
  std::int64_t prompt_tokens = 0, generation_tokens = 0;
  std::int64_t prefix_queries = 0, prefix_hits = 0;  ///< tokens looked up and found
  std::int64_t refused = 0;                          ///< first tokens that could not have come in time
  std::int64_t steps = 0, shed_steps = 0;            ///< all; those with fewer compensators than usual
  double compensator_density = 1;                    ///< of the last step
  double predicted_seconds = 0, step_seconds = 0;    ///< of the last step; predicted: 0 without a latency model
};

}  // namespace spear
