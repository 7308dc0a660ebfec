#include "engine/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/interrupt.h"
#include "text/utf8.h"

namespace spear {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPrefillChunk = 512;  // bounds the memory of activations, and the wait after Ctrl-C

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

}  // namespace

const char* name(FinishReason reason) {
  switch (reason) {
    case FinishReason::eos:
      return "eos";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::interrupted:
      return "interrupted";
  }
  return "?";
}

GenerateResult generate(ForwardModel& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                        const TokenBytes& token_bytes, const TextSink& sink) {
  const ModelConfig& config = model.config();
  check_request(config, prompt, options);
  const auto prompt_tokens = static_cast<std::int64_t>(prompt.size());
  const std::int64_t limit = std::min(options.max_tokens, config.max_position_embeddings - prompt_tokens);
  const auto ends_sequence = [&](std::int32_t token) {
    const auto holds = [token](const auto& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
    return !options.ignore_eos && (holds(config.eos_token_ids) || holds(options.eos_token_ids));
  };

  GenerateResult result;
  Sampler sampler(options.sampling);
  Utf8Stream characters;
  StopFilter filter(options.stop, sink, result.text);
  const auto cache = model.make_cache(1, prompt_tokens + limit - 1);
  std::vector<float> logits(static_cast<std::size_t>(config.vocab_size));
  const auto start = Clock::now();
  auto decode_start = start;

  const auto next_token = [&](std::span<const std::int32_t> tokens) {
    const auto hidden = model.hidden_states({tokens, 1, static_cast<std::int64_t>(tokens.size())}, cache.get());
    model.logits(std::span(hidden).last(static_cast<std::size_t>(config.hidden_size)), logits);
    return sampler.next(logits);
  };
  const auto finish = [&](FinishReason reason) {
    if (reason != FinishReason::stop && !filter.push(characters.finish())) filter.finish();
    result.reason = reason;
    result.decode_seconds = seconds_since(decode_start);
    return result;
  };

  for (; static_cast<std::int64_t>(prompt.size()) > kPrefillChunk; prompt = prompt.subspan(kPrefillChunk)) {
    model.hidden_states({prompt.first(kPrefillChunk), 1, kPrefillChunk}, cache.get());
    if (interrupted()) return finish(FinishReason::interrupted);
  }
  std::int32_t token = next_token(prompt);
  decode_start = Clock::now();
  result.prefill_seconds = std::chrono::duration<double>(decode_start - start).count();
  for (;;) {
    if (ends_sequence(token)) return finish(FinishReason::eos);
    result.tokens.push_back(token);
    if (filter.push(characters.push(token_bytes(token)))) return finish(FinishReason::stop);
    if (static_cast<std::int64_t>(result.tokens.size()) >= limit) return finish(FinishReason::length);
    if (interrupted()) return finish(FinishReason::interrupted);
    token = next_token({&token, 1});
  }
}

}  // namespace spear
