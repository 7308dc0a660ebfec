// One /v1/completions or /v1/chat/completions request on its way: tokens come in, the answer goes out, whole or
// streamed.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_thread.h"
#include "server/api_error.h"
#include "server/generation_params.h"
#include "server/http.h"
#include "server/metrics.h"
#include "text/stop_filter.h"
#include "text/tool_calls.h"
#include "text/utf8.h"

namespace spear {

/// All methods on the server's thread.
class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  struct Engine {
    std::function<Ticket(Request, std::shared_ptr<CompletionJob>)> submit;  ///< events of the ticket come to take()
    std::function<void(Ticket)> cancel;
  };

  CompletionJob(GenerationParams params, const ServedModel& model, std::shared_ptr<HttpExchange> exchange,
                Engine engine, Metrics& metrics, bool log);

  /// Submits every choice; the job then lives until its last event.
  void start();
  void take(const TokenEvent& event);
  /// The rest is not wanted any more: nobody listens, or time is up.
  void abandon(FinishReason reason);

 private:
  struct Choice {
    Ticket ticket = 0;
    std::size_t prompt = 0;
    Utf8Stream characters;
    StopFilter filter;
    std::optional<ToolCallParser> parser;
    std::vector<ToolCall> calls;  // not sent yet; all of them when nothing is streamed
    std::size_t num_calls = 0;
    std::string text;         // certain and not sent yet; the whole text when nothing is streamed
    nlohmann::json logprobs;  // entries not sent yet
    std::int64_t text_offset = 0;
    std::int64_t tokens = 0, cached_tokens = 0;
    double compensator_density = 1;  // the lowest part of the compensators that it was computed with
    bool begun = false, done = false;
    std::optional<FinishReason> reason;
    std::chrono::steady_clock::time_point first_token = {}, last_token = {};
  };

  bool is_hidden(std::int32_t token) const;
  void add_text(Choice& choice, std::string_view piece, bool last);
  bool has_enough_calls(const Choice& choice) const;
  const char* reason_of(const Choice& choice) const;
  void begin(Choice& choice, const TokenEvent& event);
  void add_logprobs(Choice& choice, std::span<const TokenLogprob> logprobs);
  void add_first_logprob(Choice& choice);
  std::string token_text(std::int32_t token) const;
  void end(Choice& choice, FinishReason reason, std::chrono::steady_clock::time_point time);
  void fail(const ApiError& answer);
  void send_piece(Choice& choice);
  void send(const nlohmann::json& document);
  void complete();
  nlohmann::json envelope(const char* object) const;
  nlohmann::json message_json(Choice& choice, bool streamed);
  nlohmann::json choice_json(Choice& choice, bool streamed);
  nlohmann::json take_logprobs(Choice& choice);
  nlohmann::json usage() const;
  void finish_stream();
  void log_end(const char* reason) const;

  GenerationParams params_;
  const ServedModel& model_;
  std::shared_ptr<HttpExchange> exchange_;
  Engine engine_;
  Metrics& metrics_;
  bool log_;
  std::vector<Choice> choices_;
  std::string id_;
  std::int64_t created_ = 0;
  std::chrono::steady_clock::time_point arrival_;
  std::size_t open_ = 0;
  bool streaming_ = false, over_ = false;
};

}  // namespace spear
