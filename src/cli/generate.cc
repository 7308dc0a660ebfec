#include "engine/generate.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <future>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "text/chat_template.h"

namespace spear::cli {
namespace {

struct Options {
  std::string prompt, system;
  std::vector<std::string> logit_bias;
  bool chat = false;
  GenerateOptions generate;
};

std::vector<std::int32_t> prompt_tokens(const Tokenizer& tokenizer, const Options& options) {
  if (!options.chat) return tokenizer.encode(options.prompt, {.add_special = true, .parse_special = false});
  if (tokenizer.chat_template().empty()) {
    throw usage_error("the model has no chat template", "--chat", "leave --chat out");
  }
  auto messages = nlohmann::ordered_json::array();
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  messages.push_back({{"role", "user"}, {"content", options.prompt}});
  const ChatTemplate chat(tokenizer.chat_template());
  return tokenizer.encode(chat.render(messages, true, tokenizer.template_tokens()),
                          {.add_special = false, .parse_special = true});
}

std::pair<std::int32_t, float> parse_bias(const std::string& text) {
  std::int32_t token = 0;
  float bias = 0;
  const char* const end = text.data() + text.size();
  const auto [equals, error] = std::from_chars(text.data(), end, token);
  if (error != std::errc() || equals == end || *equals != '=') {
    throw usage_error(fmt::format("'{}' is not TOKEN_ID=BIAS", text), "--logit-bias", "for example 42=-100");
  }
  const auto [rest, bad] = std::from_chars(equals + 1, end, bias);
  if (bad != std::errc() || rest != end) {
    throw usage_error(fmt::format("'{}' is not TOKEN_ID=BIAS", text), "--logit-bias", "for example 42=-100");
  }
  return {token, bias};
}

/// By token: {"token","logprob","top":[{"token","logprob"}]}.
nlohmann::json logprobs_json(const GenerateResult& result) {
  auto out = nlohmann::json::array();
  for (const auto& token : result.logprobs) {
    nlohmann::json row = {{"token", token.front().token}, {"logprob", token.front().logprob}};
    row["top"] = nlohmann::json::array();
    for (const TokenLogprob& other : std::span(token).subspan(1)) {
      row["top"].push_back({{"token", other.token}, {"logprob", other.logprob}});
    }
    out.push_back(std::move(row));
  }
  return out;
}

nlohmann::json document(const GenerateResult& result, std::size_t prompt_tokens, const CpuModel& model) {
  const auto rate = [](std::size_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  return {{"schema", "spear.generate/1"},
          {"text", result.text},
          {"tokens", result.tokens},
          {"finish_reason", name(result.reason)},
          {"prompt_tokens", prompt_tokens},
          {"completion_tokens", result.tokens.size()},
          {"prefill_seconds", result.prefill_seconds},
          {"decode_seconds", result.decode_seconds},
          {"prefill_tokens_per_second", rate(prompt_tokens, result.prefill_seconds)},
          {"decode_tokens_per_second", rate(result.tokens.size(), result.decode_seconds)},
          {"isa", model.isa()},
          {"threads", model.threads()}};
}

int run(const CommonOptions& common, const ModelOptions& model_options, Options options) {
  apply(common);
  for (const auto& text : options.logit_bias) options.generate.sampling.logit_bias.push_back(parse_bias(text));
  options.generate.sampling.validate();
  auto weights = std::async(std::launch::async, [&] { return read_weights(model_options.model, model_options); });
  const Tokenizer tokenizer = load_tokenizer(model_options.model);
  const auto prompt = prompt_tokens(tokenizer, options);
  CpuModel model = make_model(weights.get(), model_options.model, common, model_options);
  options.generate.compensator_density = model_options.density();
  use_measured_kernels(model, model_options);
  for (const std::int32_t id : tokenizer.named().end) options.generate.eos_token_ids.push_back(id);

  const auto print = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  const auto text_of = [&tokenizer](std::int32_t id) {
    return id >= tokenizer.vocab_size() || tokenizer.is_special(id) ? std::string() : tokenizer.token_bytes(id);
  };
  const auto result = generate(model, prompt, options.generate, text_of, common.json ? TextSink() : TextSink(print));
  auto json = document(result, prompt.size(), model);
  json["kv_cache_dtype"] = name(options.generate.kv_cache_type);
  if (options.generate.sampling.logprobs >= 0) json["logprobs"] = logprobs_json(result);
  if (common.json) {
    print_json(json);
  } else {
    std::fputc('\n', stdout);
    std::fflush(stdout);
  }
  log::info("{} tokens at {:.1f} tokens/s after a prompt of {} ({}); ended by: {}", result.tokens.size(),
            json["decode_tokens_per_second"].get<double>(), prompt.size(), format_duration(result.prefill_seconds),
            name(result.reason));
  if (result.reason == FinishReason::interrupted) return static_cast<int>(ExitCode::interrupted);
  print_next(common, fmt::format("spear eval --model {} --text FILE", shell_quoted(model_options.model)));
  return 0;
}

}  // namespace

void add_generate(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<ModelOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command =
      line.add("generate", "Continue a prompt, or answer a chat message",
               {"spear generate --model recovered --prompt 'The capital of France is'",
                "spear generate --model recovered --chat --prompt 'Why is the sky blue?' --temperature 0.7"},
               [=] { return run(*common, *model, *options); });
  add_model_options(command, model);
  add_kv_cache_option(command, &options->generate.kv_cache_type);
  add_common_options(command, common);
  command.add_option("--prompt", options->prompt, "Text to continue")->required()->group("Prompt");
  command.add_flag("--chat", options->chat, "Put the prompt into the model's chat template")->group("Prompt");
  command.add_option("--system", options->system, "System message, with --chat")->group("Prompt")->needs("--chat");
  auto& generate = options->generate;
  auto& sampling = generate.sampling;
  command.add_option("--max-tokens", generate.max_tokens, "Tokens to generate at most")
      ->capture_default_str()
      ->group("Sampling");
  command.add_option("--temperature", sampling.temperature, "0 is greedy")->capture_default_str()->group("Sampling");
  command.add_option("--top-k", sampling.top_k, "Keep the K likeliest tokens; 0: all")
      ->capture_default_str()
      ->group("Sampling");
  command.add_option("--top-p", sampling.top_p, "Keep the smallest set of this probability")
      ->capture_default_str()
      ->group("Sampling");
  command.add_option("--min-p", sampling.min_p, "Keep tokens this likely, relative to the likeliest")
      ->capture_default_str()
      ->group("Sampling");
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "Divides positive logits of tokens seen in prompt or output, multiplies negative ones")
      ->capture_default_str()
      ->group("Sampling");
  command.add_option("--frequency-penalty", sampling.frequency_penalty, "Subtracted for each occurrence in the output")
      ->capture_default_str()
      ->group("Sampling");
  command.add_option("--presence-penalty", sampling.presence_penalty, "Subtracted once for tokens in the output")
      ->capture_default_str()
      ->group("Sampling");
  command.add_option("--logit-bias", options->logit_bias, "TOKEN_ID=BIAS, added to a token's logit; repeatable")
      ->type_name("ID=BIAS")
      ->type_size(1)
      ->allow_extra_args(false)
      ->group("Sampling");
  command
      .add_option("--logprobs", sampling.logprobs, "With --json: log-probabilities of the tokens and of N alternatives")
      ->type_name("N")
      ->needs("--json")
      ->group("Sampling");
  command.add_option("--seed", sampling.seed, "Of the random numbers")->capture_default_str()->group("Sampling");
  command.add_option("--stop", generate.stop, "End before this text; repeatable")
      ->type_size(1)
      ->allow_extra_args(false)
      ->group("Sampling");
  command.add_flag("--ignore-eos", generate.ignore_eos, "Go on after the end token")->group("Sampling");
}

}  // namespace spear::cli
