// Prompt tokens in, a stream of text out: prefill, then one token at a time until something ends it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"

namespace spear {

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  SamplingOptions sampling = {};
  std::vector<std::string> stop = {};            ///< text that ends the output and is not part of it
  std::vector<std::int64_t> eos_token_ids = {};  ///< in addition to those of the model's config
  bool ignore_eos = false;
  KvCacheType kv_cache_type = KvCacheType::bf16;
  double compensator_density = 1;  ///< part of the compensators that is applied
};

struct GenerateResult {
  std::vector<std::int32_t> tokens;  ///< generated tokens, the end-of-sequence token left out
  /// By token, with SamplingOptions::logprobs: see Sampler::logprobs.
  std::vector<std::vector<TokenLogprob>> logprobs;
  std::string text;
  FinishReason reason = FinishReason::length;
  double prefill_seconds = 0, decode_seconds = 0;
};

/// Bytes of one token; may be part of a UTF-8 character.
using TokenBytes = std::function<std::string(std::int32_t)>;
/// Receives text as it becomes certain: whole UTF-8 characters that can't be the start of a stop string.
using TextSink = std::function<void(std::string_view)>;

/// Throws Error(usage) for an empty prompt, or one that leaves no room for a token within max_position_embeddings
/// (it is never cut). Output that reaches that limit ends with FinishReason::length. Ctrl-C ends it with
/// FinishReason::interrupted and keeps what there is. Runs as the only request of an Engine.
GenerateResult generate(PagedModel& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                        const TokenBytes& token_bytes, const TextSink& sink = {});

}  // namespace spear
