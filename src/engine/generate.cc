#include "engine/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"
#include "text/stop_filter.h"
#include "text/utf8.h"

namespace spear {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMaxBatchedTokens = 512;  // bounds the memory of activations, and the wait after Ctrl-C

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check_request(const ModelConfig& config, std::span<const std::int32_t> prompt, const GenerateOptions& options) {
  if (prompt.empty()) throw usage_error("the prompt has no tokens", "--prompt", "give at least one character of text");
  if (options.max_tokens < 1) throw usage_error("nothing to generate", "--max-tokens", "ask for at least one token");
  if (static_cast<std::int64_t>(prompt.size()) >= config.max_position_embeddings) {
    throw usage_error(fmt::format("the prompt has {} tokens and the model has {} positions", prompt.size(),
                                  config.max_position_embeddings),
                      "--prompt", "shorten the prompt; it is never cut silently");
  }
}

EngineOptions engine_options(const PagedModel& model, std::span<const std::int32_t> prompt,
                             const GenerateOptions& options) {
  const auto prompt_tokens = static_cast<std::int64_t>(prompt.size());
  const std::int64_t limit = std::min(options.max_tokens, model.config().max_position_embeddings - prompt_tokens);
  EngineOptions engine;
  engine.num_blocks = blocks_for(prompt_tokens + limit - 1, model.block_size());
  engine.kv_cache_type = options.kv_cache_type;
  engine.max_num_seqs = 1;
  engine.prefix_caching = false;
  engine.scheduler.density = options.compensator_density;
  return engine;
}

}  // namespace

GenerateResult generate(PagedModel& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                        const TokenBytes& token_bytes, const TextSink& sink) {
  const ModelConfig& config = model.config();
  check_request(config, prompt, options);
  Request request;
  request.prompt.assign(prompt.begin(), prompt.end());
  request.max_tokens = options.max_tokens;
  request.sampling = options.sampling;
  if (!options.ignore_eos) {
    request.stop_token_ids = config.eos_token_ids;
    request.stop_token_ids.insert(request.stop_token_ids.end(), options.eos_token_ids.begin(),
                                  options.eos_token_ids.end());
  }
  const TokenBudgetPolicy policy(kMaxBatchedTokens);
  Engine engine(model, policy, engine_options(model, prompt, options));
  engine.add(std::move(request));

  GenerateResult result;
  Utf8Stream characters;
  StopFilter filter(options.stop);
  const auto give = [&](const std::string& text) {
    if (!text.empty() && sink) sink(text);
    result.text += text;
  };
  const auto start = Clock::now();
  auto decode_start = start;
  const auto finish = [&](FinishReason reason) {
    if (reason != FinishReason::stop) {
      give(filter.push(characters.finish()));
      if (!filter.stopped()) give(filter.finish());
    }
    result.reason = reason;
    result.decode_seconds = seconds_since(decode_start);
    return result;
  };
  for (bool first = true; !engine.idle();) {
    for (const StepOutput& output : engine.step()) {
      if (std::exchange(first, false)) {
        decode_start = Clock::now();
        result.prefill_seconds = std::chrono::duration<double>(decode_start - start).count();
      }
      if (output.error != nullptr) throw *output.error;
      if (output.token >= 0) {
        result.tokens.push_back(output.token);
        if (!output.logprobs.empty()) result.logprobs.emplace_back(output.logprobs.begin(), output.logprobs.end());
        give(filter.push(characters.push(token_bytes(output.token))));
        if (filter.stopped()) return finish(FinishReason::stop);
      }
      if (output.finished) return finish(*output.finished);
    }
    if (interrupted()) break;
  }
  return finish(FinishReason::interrupted);
}

}  // namespace spear
