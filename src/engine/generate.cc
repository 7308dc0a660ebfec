#include "engine/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"
#include "text/utf8.h"

namespace spear {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMaxBatchedTokens = 512;  // bounds the memory of activations, and the wait after Ctrl-C

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Text on its way out: held back while it could still become a stop string.
class StopFilter {
 public:
  StopFilter(const std::vector<std::string>& stops, const TextSink& sink, std::string& text)
      : stops_(stops), sink_(sink), text_(text) {}

  /// True when a stop string is complete; what came before it has then been given out, the rest is dropped.
  bool push(std::string_view piece) {
    held_ += piece;
    std::size_t found = std::string::npos;
    for (const auto& stop : stops_) found = std::min(found, held_.find(stop));
    if (found != std::string::npos) {
      give(found);
      held_.clear();
      return true;
    }
    give(held_.size() - possible_stop());
    return false;
  }

  void finish() { give(held_.size()); }

 private:
  /// Length of the longest end of the held text that begins a stop string.
  std::size_t possible_stop() const {
    std::size_t longest = 0;
    for (const auto& stop : stops_) {
      std::size_t length = std::min(stop.size() - 1, held_.size());
      while (length > longest && !held_.ends_with(std::string_view(stop).substr(0, length))) --length;
      longest = std::max(longest, length);
    }
    return longest;
  }

  void give(std::size_t count) {
    if (count == 0) return;
    if (sink_) sink_(std::string_view(held_).substr(0, count));
    text_.append(held_, 0, count);
    held_.erase(0, count);
  }

  const std::vector<std::string>& stops_;
  const TextSink& sink_;
  std::string& text_;
  std::string held_;
};

void check_request(const ModelConfig& config, std::span<const std::int32_t> prompt, const GenerateOptions& options) {
  if (prompt.empty()) throw usage_error("the prompt has no tokens", "--prompt", "give at least one character of text");
  if (options.max_tokens < 1) throw usage_error("nothing to generate", "--max-tokens", "ask for at least one token");
  if (static_cast<std::int64_t>(prompt.size()) >= config.max_position_embeddings) {
    throw usage_error(fmt::format("the prompt has {} tokens and the model has {} positions", prompt.size(),
                                  config.max_position_embeddings),
                      "--prompt", "shorten the prompt; it is never cut silently");
  }
  for (const auto& stop : options.stop) {
    if (stop.empty()) throw usage_error("a stop string is empty", "--stop", "leave it out");
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
  return engine;
}

}  // namespace

GenerateResult generate(PagedModel& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                        const TokenBytes& token_bytes, const TextSink& sink) {
  const ModelConfig& config = model.config();
  check_request(config, prompt, options);
  Request request{{prompt.begin(), prompt.end()}, options.max_tokens, options.sampling, {}};
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
  StopFilter filter(options.stop, sink, result.text);
  const auto start = Clock::now();
  auto decode_start = start;
  const auto finish = [&](FinishReason reason) {
    if (reason != FinishReason::stop && !filter.push(characters.finish())) filter.finish();
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
        if (filter.push(characters.push(token_bytes(output.token)))) return finish(FinishReason::stop);
      }
      if (output.finished) return finish(*output.finished);
    }
    if (interrupted()) break;
  }
  return finish(FinishReason::interrupted);
}

}  // namespace spear
