#include "server/generation_params.h"

#include <fmt/format.h>

#include <charconv>
#include <random>

#include "server/api_error.h"
#include "server/json_schema.h"

namespace spear {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMaxLogprobs = 1 << 19;

/// The schema has checked types and ranges already: an absent field leaves `value` as it is.
template <class T>
void take(const Json& body, const char* name, T& value) {
  if (const auto found = body.find(name); found != body.end() && !found->is_null()) value = found->get<T>();
}

std::uint64_t random_seed() {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return random();
}

void take_seed(const Json& body, GenerationParams& params) {
  const auto found = body.find("seed");
  params.seeded = found != body.end();
  params.request.sampling.seed = !params.seeded                ? random_seed()
                                 : found->is_number_unsigned() ? found->get<std::uint64_t>()
                                                               : static_cast<std::uint64_t>(found->get<std::int64_t>());
}

void take_logit_bias(const Json& body, const ServedModel& model, SamplingOptions& sampling) {
  const auto found = body.find("logit_bias");
  if (found == body.end()) return;
  for (const auto& [key, bias] : found->items()) {
    std::int32_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || token < 0 || token >= model.vocab_size) {
      throw bad_request(fmt::format("'{}' is no token id of a vocabulary of {}", key.substr(0, 40), model.vocab_size),
                        "logit_bias");
    }
    sampling.logit_bias.emplace_back(token, bias.get<float>());
  }
}

void take_common(const Json& body, const ServedModel& model, GenerationParams& params) {
  check_model(body, model);
  Request& request = params.request;
  SamplingOptions& sampling = request.sampling = model.defaults;
  take(body, "n", params.n);
  take(body, "stream", params.stream);
  take(body, "temperature", sampling.temperature);
  take(body, "top_p", sampling.top_p);
  take(body, "top_k", sampling.top_k);
  sampling.top_k = std::max<std::int64_t>(sampling.top_k, 0);
  take(body, "min_p", sampling.min_p);
  take(body, "frequency_penalty", sampling.frequency_penalty);
  take(body, "presence_penalty", sampling.presence_penalty);
  take(body, "repetition_penalty", sampling.repetition_penalty);
  take_seed(body, params);
  take_logit_bias(body, model, sampling);
  if (const auto stop = body.find("stop"); stop != body.end()) {
    if (stop->is_string()) {
      params.stop = {stop->get<std::string>()};
    } else {
      params.stop = stop->get<std::vector<std::string>>();
    }
  }
  bool ignore_eos = false;
  take(body, "ignore_eos", ignore_eos);
  params.output = output_format(body, model.tool_format);
  params.call_seed = random_seed();
  if (ignore_eos && params.output.constrained()) {
    throw bad_request("an output that has to fit a grammar ends where it is complete: leave ignore_eos out",
                      "ignore_eos");
  }
  if (!ignore_eos) request.stop_token_ids = model.stop_token_ids;
  if (const auto ids = body.find("stop_token_ids"); ids != body.end()) {
    for (const auto& id : *ids) request.stop_token_ids.push_back(id.get<std::int64_t>());
  }
  if (const auto options = body.find("stream_options"); options != body.end()) {
    if (!params.stream) throw bad_request("stream_options needs stream", "stream_options");
    take(*options, "include_usage", params.include_usage);
    take(*options, "continuous_usage_stats", params.continuous_usage);
    params.include_usage = params.include_usage || params.continuous_usage;
  }
  if (const auto slo = body.find("slo"); slo != body.end()) {
    take(*slo, "ttft_ms", request.slo.ttft_ms);
    take(*slo, "itl_ms", request.slo.itl_ms);
  }
  take(body, "priority", request.priority);
  if (const auto on = body.find("compensators"); on != body.end()) {
    const bool wanted = on->get<bool>();
    if (wanted && model.compensator_density == 0) throw bad_request("this server runs no compensators", "compensators");
    if (model.compensator_density > 0) request.compensator_density = wanted ? 1.0 : 0.0;
  }
}

/// Room for the output; a prompt that leaves none is refused, never cut.
void check_lengths(const ServedModel& model, GenerationParams& params, const std::optional<std::int64_t>& max_tokens,
                   const char* field) {
  std::int64_t longest = 0;
  for (const auto& prompt : params.prompts) longest = std::max(longest, static_cast<std::int64_t>(prompt.size()));
  const std::int64_t wanted = max_tokens.value_or(1);
  if (longest + std::max<std::int64_t>(wanted, 1) > model.max_model_len) {
    throw bad_request(fmt::format("this model's maximum context length is {} tokens; the prompt has {} and {} are "
                                  "asked for: shorten one of them",
                                  model.max_model_len, longest, wanted),
                      field, "context_length_exceeded");
  }
  params.request.max_tokens = std::max<std::int64_t>(max_tokens.value_or(model.max_model_len - longest), 1);
  if (!params.want_logprobs) return;
  // They are kept until the answer is complete: about 200 bytes each.
  std::int64_t entries = 0;
  for (const auto& prompt : params.prompts) {
    const std::int64_t tokens = params.echo ? static_cast<std::int64_t>(prompt.size()) : 0;
    entries += (tokens + params.request.max_tokens) * (1 + params.request.sampling.logprobs) * params.n;
  }
  if (entries > kMaxLogprobs) {
    throw bad_request(fmt::format("{} log-probabilities in one request, at most {}: ask for fewer choices, tokens or "
                                  "alternatives", entries, kMaxLogprobs), "logprobs");
  }
}

std::vector<std::int32_t> token_ids(const Json& ids, const ServedModel& model) {
  auto tokens = ids.get<std::vector<std::int32_t>>();
  for (const std::int32_t token : tokens) {
    if (token >= model.vocab_size)
      throw bad_request(fmt::format("token {} is outside the vocabulary of {}", token, model.vocab_size), "prompt");
  }
  return tokens;
}

void take_prompts(const Json& body, const ServedModel& model, GenerationParams& params) {
  EncodeOptions options{.add_special = true, .parse_special = true};
  take(body, "add_special_tokens", options.add_special);
  const Json& prompt = body.at("prompt");
  const auto add_text = [&](const Json& text) {
    params.prompts.push_back(model.tokenizer->encode(text.get_ref<const std::string&>(), options));
  };
  if (prompt.is_string()) {
    add_text(prompt);
  } else if (prompt.front().is_number()) {
    params.prompts.push_back(token_ids(prompt, model));
  } else {
    for (const auto& one : prompt) {
      if (one.is_string()) {
        add_text(one);
      } else {
        params.prompts.push_back(token_ids(one, model));
      }
    }
  }
  for (auto& tokens : params.prompts) {
    if (!tokens.empty()) continue;
    // Models begin somewhere: an empty prompt is a new document, where the model has a token for that.
    const auto& named = model.tokenizer->named();
    const auto begin = named.bos ? named.bos : named.eos;
    if (!begin) throw bad_request("the prompt has no tokens", "prompt");
    tokens.push_back(*begin);
  }
}

/// OpenAI's arguments are text; templates expect the object.
void parse_arguments(Json& message, std::size_t index) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || calls->is_null()) return;
  for (std::size_t i = 0; i < calls->size(); ++i) {
    Json& arguments = (*calls)[i].at("function").at("arguments");
    const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxBodyDepth; };
    Json object = Json::parse(arguments.get_ref<const std::string&>(), shallow, false);
    if (!object.is_object()) {
      throw bad_request("must be a JSON object, as text",
                        fmt::format("messages[{}].tool_calls[{}].function.arguments", index, i));
    }
    arguments = std::move(object);
  }
}

}  // namespace

void check_model(const Json& body, const ServedModel& model) {
  const auto found = body.find("model");
  if (found == body.end()) return;
  const auto& name = found->get_ref<const std::string&>();
  if (name.empty() || name == model.name || name == model.root) return;
  throw ApiError(404, "not_found_error",
                 fmt::format("the model '{}' is not served here; this is '{}'", name, model.name), "model",
                 "model_not_found");
}

GenerationParams completion_params(const Json& body, const ServedModel& model) {
  GenerationParams params;
  take_common(body, model, params);
  take(body, "echo", params.echo);
  if (const auto logprobs = body.find("logprobs"); logprobs != body.end()) {
    params.want_logprobs = true;
    params.request.sampling.logprobs = logprobs->get<std::int64_t>();
    params.request.prompt_logprobs = params.echo;
  }
  take_prompts(body, model, params);
  if (static_cast<std::int64_t>(params.prompts.size()) * params.n > 2048)
    throw bad_request("more than 2,048 choices in one request", "n");
  std::int64_t max_tokens = 16;  // OpenAI's default of this endpoint
  take(body, "max_tokens", max_tokens);
  params.no_output = max_tokens == 0;
  if (params.no_output && !params.echo) throw bad_request("must be at least 1, unless echo is set", "max_tokens");
  check_lengths(model, params, max_tokens, "prompt");
  return params;
}

GenerationParams chat_params(const Json& body, const ServedModel& model) {
  GenerationParams params;
  params.chat = true;
  take_common(body, model, params);
  take(body, "logprobs", params.want_logprobs);
  if (params.want_logprobs) {
    params.request.sampling.logprobs = 0;
    take(body, "top_logprobs", params.request.sampling.logprobs);
  } else if (body.contains("top_logprobs") && body.at("top_logprobs") != 0) {
    throw bad_request("top_logprobs needs logprobs", "top_logprobs");
  }
  Json extra = Json::object();
  if (const auto more = body.find("chat_template_kwargs"); more != body.end()) extra = *more;
  if (!params.output.tools.is_null()) extra["tools"] = params.output.tools;
  params.prompts.push_back(chat_prompt(body.at("messages"), model, true, extra));
  std::optional<std::int64_t> max_tokens;
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (body.contains(name)) max_tokens = body.at(name).get<std::int64_t>();
  }
  if (max_tokens == 0) throw bad_request("must be at least 1", "max_tokens");
  check_lengths(model, params, max_tokens, "messages");
  return params;
}

std::vector<std::int32_t> chat_prompt(const Json& messages, const ServedModel& model, bool add_generation_prompt,
                                      const Json& extra) {
  if (!model.chat_template) {
    throw bad_request("this model has no chat template; use /v1/completions", "messages");
  }
  Json flat = messages;
  for (std::size_t i = 0; i < flat.size(); ++i) {
    auto& message = flat[i];
    parse_arguments(message, i);
    // Templates of text models expect one string.
    const auto content = message.find("content");
    if (content == message.end() || !content->is_array()) continue;
    std::string text;
    for (const auto& part : *content) text += part.at("text").get_ref<const std::string&>();
    *content = text;
  }
  try {
    const std::string text =
        model.chat_template->render(flat, add_generation_prompt, model.tokenizer->template_tokens(), extra);
    return model.tokenizer->encode(text, {.add_special = false, .parse_special = true});
  } catch (const Error& error) {
    throw bad_request("the chat template refuses these messages: " + error.problem(), "messages");
  }
}

}  // namespace spear
