#include "server/completion_job.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "engine/grammar_constraint.h"
#include "server/api_error.h"
#include "text/utf8.h"

namespace spear {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

const char* openai_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::eos:
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    default:
      return "abort";
  }
}

std::string dumped(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

CompletionJob::CompletionJob(GenerationParams params, const ServedModel& model, std::shared_ptr<HttpExchange> exchange,
                             Engine engine, Metrics& metrics, bool log)
    : params_(std::move(params)),
      model_(model),
      exchange_(std::move(exchange)),
      engine_(std::move(engine)),
      metrics_(metrics),
      log_(log),
      id_((params_.chat ? "chatcmpl-" : "cmpl-") + exchange_->request().id),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      arrival_(params_.request.arrival) {}

void CompletionJob::start() {
  const auto self = shared_from_this();
  exchange_->on_close([weak = weak_from_this()] {
    if (const auto job = weak.lock()) job->abandon(FinishReason::cancelled);
  });
  choices_.resize(params_.prompts.size() * static_cast<std::size_t>(params_.n));
  open_ = choices_.size();
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    choice.prompt = i / static_cast<std::size_t>(params_.n);
    choice.filter = StopFilter(params_.stop);
    choice.logprobs = Json::array();
    if (params_.output.calls) choice.parser.emplace(*params_.output.calls, params_.call_seed + i);
    Request request = params_.request;
    request.prompt = params_.prompts[choice.prompt];
    request.sampling.seed += i % static_cast<std::size_t>(params_.n);
    if (params_.grammar)
      request.constraint = std::make_shared<GrammarConstraint>(params_.grammar, model_.stop_token_ids);
    choice.ticket = engine_.submit(std::move(request), self);
  }
}

void CompletionJob::take(const TokenEvent& event) {
  if (over_) return;
  const auto found =
      std::find_if(choices_.begin(), choices_.end(), [&](const Choice& c) { return c.ticket == event.ticket; });
  if (found == choices_.end() || found->done) return;
  Choice& choice = *found;
  if (event.finished == FinishReason::refused) {
    metrics_.refused("slo");
    return fail({503, "overloaded_error", event.error->problem() + "; " + event.error->remedy(), event.error->where()});
  }
  if (event.error) {
    // A schema that the vocabulary cannot write, or too ambiguous to follow, is its author's.
    const bool schema = params_.grammar && event.error->where() == "response_format";
    return fail(schema ? bad_request(event.error->problem(), params_.output.calls ? "tools" : "response_format")
                       : api_error(*event.error));
  }
  choice.compensator_density = std::min(choice.compensator_density, event.compensator_density);
  if (!choice.begun) begin(choice, event);
  if (event.token >= 0 && !params_.no_output) {
    ++choice.tokens;
    metrics_.token(choice.tokens == 1, arrival_, choice.last_token, event.time, params_.request.slo);
    if (choice.tokens == 1) choice.first_token = event.time;
    choice.last_token = event.time;
    const std::string bytes = is_hidden(event.token) ? std::string() : model_.tokenizer->token_bytes(event.token);
    add_text(choice, choice.filter.push(choice.characters.push(bytes)), choice.filter.stopped());
    if (params_.want_logprobs) add_logprobs(choice, event.logprobs);
    if (choice.filter.stopped() || has_enough_calls(choice)) {
      if (!event.finished) engine_.cancel(choice.ticket);
      return end(choice, FinishReason::stop, event.time);
    }
  }
  if (event.finished) return end(choice, *event.finished, event.time);
  if (params_.stream) send_piece(choice);
}

/// Special tokens are no text, but for those that tool calls are written with.
bool CompletionJob::is_hidden(std::int32_t token) const {
  const Tokenizer& tokenizer = *model_.tokenizer;
  if (token >= tokenizer.vocab_size()) return true;
  if (!tokenizer.is_special(token)) return false;
  if (!params_.output.calls) return true;
  const ToolTags tags = tool_tags(*params_.output.calls);
  return token != tokenizer.token_id(tags.open) && token != tokenizer.token_id(tags.close);
}

/// Text that no stop string can begin in any more; `last`: nothing follows.
void CompletionJob::add_text(Choice& choice, std::string_view piece, bool last) {
  if (!choice.parser) {
    choice.text += piece;
    return;
  }
  const auto take_output = [&](ToolCallParser::Output output) {
    choice.text += output.text;
    for (ToolCall& call : output.calls) {
      if (has_enough_calls(choice)) break;
      choice.calls.push_back(std::move(call));
      ++choice.num_calls;
    }
  };
  take_output(choice.parser->push(piece));
  if (last && !has_enough_calls(choice)) take_output(choice.parser->finish());
}

/// With parallel_tool_calls off, nothing is wanted behind the first call.
bool CompletionJob::has_enough_calls(const Choice& choice) const {
  return !params_.output.parallel && choice.num_calls > 0;
}

const char* CompletionJob::reason_of(const Choice& choice) const {
  const bool ended = choice.reason == FinishReason::eos || choice.reason == FinishReason::stop;
  return ended && choice.num_calls > 0 ? "tool_calls" : openai_name(*choice.reason);
}

/// The first event: the prompt has been read.
void CompletionJob::begin(Choice& choice, const TokenEvent& event) {
  choice.begun = true;
  choice.cached_tokens = event.cached_tokens;
  metrics_.admitted(arrival_, event.admitted, event.time,
                    static_cast<std::int64_t>(params_.prompts[choice.prompt].size()));
  if (params_.stream && !streaming_) {
    streaming_ = true;
    exchange_->start_stream("text/event-stream");
  }
  if (params_.stream && params_.chat) {
    Json document = envelope("chat.completion.chunk");
    document["choices"] = Json::array({{{"index", &choice - choices_.data()},
                                        {"delta", {{"role", "assistant"}, {"content", ""}}},
                                        {"logprobs", nullptr},
                                        {"finish_reason", nullptr}}});
    send(document);
  }
  if (!params_.echo) return;
  choice.text += model_.tokenizer->decode(params_.prompts[choice.prompt]);
  if (!params_.want_logprobs) return;
  add_first_logprob(choice);
  for (const auto& logprobs : event.prompt_logprobs) add_logprobs(choice, logprobs);
}

std::string CompletionJob::token_text(std::int32_t token) const {
  if (token >= model_.tokenizer->vocab_size()) return {};
  return model_.tokenizer->decode(std::span(&token, 1));
}

/// The first token of the prompt follows nothing: it has no probability.
void CompletionJob::add_first_logprob(Choice& choice) {
  const std::string text = token_text(params_.prompts[choice.prompt].front());
  choice.logprobs.push_back({{"token", text}, {"logprob", nullptr}, {"top", nullptr}, {"offset", 0}});
  choice.text_offset = count_characters(text);
}

void CompletionJob::add_logprobs(Choice& choice, std::span<const TokenLogprob> logprobs) {
  if (logprobs.empty()) return;
  const auto entry = [&](const TokenLogprob& one) {
    Json json = {{"token", token_text(one.token)}, {"logprob", std::max(one.logprob, -9999.0F)}};
    if (params_.chat) {
      json["bytes"] = Json::array();
      if (one.token < model_.tokenizer->vocab_size()) {
        for (const char c : model_.tokenizer->token_bytes(one.token))
          json["bytes"].push_back(static_cast<unsigned char>(c));
      }
    }
    return json;
  };
  Json json = entry(logprobs.front());
  json["offset"] = choice.text_offset;
  choice.text_offset += count_characters(json["token"].get_ref<const std::string&>());
  json["top"] = Json::array();
  for (const TokenLogprob& one : logprobs.subspan(1)) json["top"].push_back(entry(one));
  choice.logprobs.push_back(std::move(json));
}

/// Entries as the endpoint's format has them; the choice forgets them.
Json CompletionJob::take_logprobs(Choice& choice) {
  if (!params_.want_logprobs) return nullptr;
  Json entries = std::exchange(choice.logprobs, Json::array());
  if (params_.chat) {
    for (auto& entry : entries) {
      entry.erase("offset");
      entry["top_logprobs"] = std::move(entry["top"]);
      entry.erase("top");
    }
    return {{"content", std::move(entries)}};
  }
  Json out = {{"tokens", Json::array()},
              {"token_logprobs", Json::array()},
              {"top_logprobs", Json::array()},
              {"text_offset", Json::array()}};
  for (auto& entry : entries) {
    Json top = nullptr;
    if (entry["top"].is_array()) {
      top = Json::object();
      for (const auto& one : entry["top"]) top.emplace(one["token"].get<std::string>(), one["logprob"]);
      top.emplace(entry["token"].get<std::string>(), entry["logprob"]);  // the token itself is always among them
    }
    out["tokens"].push_back(entry["token"]);
    out["token_logprobs"].push_back(entry["logprob"]);
    out["top_logprobs"].push_back(std::move(top));
    out["text_offset"].push_back(entry["offset"]);
  }
  return out;
}

void CompletionJob::end(Choice& choice, FinishReason reason, Clock::time_point time) {
  if (reason != FinishReason::stop) {
    add_text(choice, choice.filter.push(choice.characters.finish()), false);
    add_text(choice, choice.filter.finish(), true);
  }
  // As OpenAI does it: what is left goes before the reason. Clients take a call to be whole when the next chunk comes.
  if (params_.stream && params_.chat) send_piece(choice);
  choice.done = true;
  choice.reason = reason;
  metrics_.finished(openai_name(reason), arrival_, choice.first_token, time, choice.tokens, params_.request.max_tokens);
  if (params_.stream) send_piece(choice);
  if (--open_ == 0) complete();
}

Json CompletionJob::envelope(const char* object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_.name}};
}

Json CompletionJob::message_json(Choice& choice, bool streamed) {
  Json message = streamed ? Json::object() : Json{{"role", "assistant"}, {"content", nullptr}};
  const std::size_t first = choice.num_calls - choice.calls.size();
  if (!choice.text.empty() || (!streamed && choice.calls.empty())) message["content"] = std::exchange(choice.text, {});
  if (choice.calls.empty()) return message;
  Json& calls = message["tool_calls"] = Json::array();
  for (std::size_t i = 0; i < choice.calls.size(); ++i) {
    const ToolCall& call = choice.calls[i];
    calls.push_back({{"id", call.id},
                     {"type", "function"},
                     {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    if (streamed) calls.back()["index"] = first + i;
  }
  choice.calls.clear();
  return message;
}

Json CompletionJob::choice_json(Choice& choice, bool streamed) {
  Json json = {{"index", &choice - choices_.data()},
               {"finish_reason", choice.reason ? Json(reason_of(choice)) : Json()}};
  json["logprobs"] = take_logprobs(choice);
  // Said where the answer is not the model's best, and only there: clients of OpenAI's do not know the field.
  if (choice.done && model_.compensator_density > 0 && choice.compensator_density < 1) {
    json["compensator_density"] = choice.compensator_density;
  }
  if (!params_.chat) {
    json["text"] = std::exchange(choice.text, {});
  } else {
    json[streamed ? "delta" : "message"] = message_json(choice, streamed);
  }
  return json;
}

void CompletionJob::send_piece(Choice& choice) {
  if (choice.text.empty() && choice.calls.empty() && choice.logprobs.empty() && !choice.done) return;
  Json document = envelope(params_.chat ? "chat.completion.chunk" : "text_completion");
  document["choices"] = Json::array({choice_json(choice, true)});
  if (params_.include_usage) document["usage"] = params_.continuous_usage ? usage() : Json();
  send(document);
}

void CompletionJob::send(const Json& document) { exchange_->write("data: " + dumped(document) + "\n\n"); }

Json CompletionJob::usage() const {
  std::int64_t prompt = 0, completion = 0, cached = 0;
  for (const auto& tokens : params_.prompts) prompt += static_cast<std::int64_t>(tokens.size());
  for (const Choice& choice : choices_) {
    completion += choice.tokens;
    cached += choice.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", std::min(cached, prompt)}}}};
}

void CompletionJob::complete() {
  over_ = true;
  log_end(openai_name(*choices_.front().reason));
  if (params_.stream) {
    if (params_.include_usage) {
      Json document = envelope(params_.chat ? "chat.completion.chunk" : "text_completion");
      document["choices"] = Json::array();
      document["usage"] = usage();
      send(document);
    }
    return finish_stream();
  }
  Json document = envelope(params_.chat ? "chat.completion" : "text_completion");
  document["choices"] = Json::array();
  for (Choice& choice : choices_) document["choices"].push_back(choice_json(choice, false));
  document["usage"] = usage();
  exchange_->respond({200, "application/json", dumped(document), {}});
}

void CompletionJob::finish_stream() {
  exchange_->write("data: [DONE]\n\n");
  exchange_->finish();
}

/// Numbers only: what was asked and answered is nobody's business.
void CompletionJob::log_end(const char* reason) const {
  if (!log_) return;
  const auto milliseconds = [this](Clock::time_point to) {
    return fmt::format("{:.1f}", std::chrono::duration<double, std::milli>(to - arrival_).count());
  };
  const auto totals = usage();
  const auto first = choices_.front().first_token;
  log::event("request", {{"id", exchange_->request().id},
                         {"path", exchange_->request().path},
                         {"reason", reason},
                         {"choices", std::to_string(choices_.size())},
                         {"prompt_tokens", totals["prompt_tokens"].dump()},
                         {"cached_tokens", totals["prompt_tokens_details"]["cached_tokens"].dump()},
                         {"completion_tokens", totals["completion_tokens"].dump()},
                         {"ttft_ms", first == Clock::time_point() ? "-" : milliseconds(first)},
                         {"total_ms", milliseconds(Clock::now())}});
}

/// One choice that fails ends them all: half an answer helps nobody.
void CompletionJob::fail(const ApiError& answer) {
  abandon(FinishReason::failed);
  if (!streaming_) return exchange_->respond(answer.response());
  send(answer.to_json());
  finish_stream();
}

void CompletionJob::abandon(FinishReason reason) {
  if (over_) return;
  over_ = true;
  log_end(name(reason));
  const auto now = Clock::now();
  for (const Choice& choice : choices_) {
    if (choice.done) continue;
    engine_.cancel(choice.ticket);
    metrics_.finished(openai_name(reason), arrival_, choice.first_token, now, choice.tokens,
                      params_.request.max_tokens);
  }
  if (reason != FinishReason::interrupted) return;
  // Time is up at a shutdown: what there is goes out, and says that it was cut.
  for (Choice& choice : choices_) {
    if (choice.done) continue;
    choice.reason = reason;
    choice.done = true;
    if (params_.stream && streaming_) send_piece(choice);
  }
  if (!params_.stream || !streaming_) {
    return exchange_->respond(
        ApiError(503, "server_error", "the server shuts down; send the request again elsewhere").response());
  }
  finish_stream();
}

}  // namespace spear
