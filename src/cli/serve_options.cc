#include "cli/serve_options.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"

namespace spear::cli {
namespace {

void add_http_options(CLI::App& command, ServeOptions& options) {
  HttpServerOptions& http = options.server.http;
  command.add_option("--host", http.host, "Address to listen on; 0.0.0.0: all")->capture_default_str()->group("Server");
  command.add_option("--port", http.port, "0: any free one, printed at the start")
      ->capture_default_str()
      ->group("Server");
  command
      .add_option("--api-key", options.server.api_keys,
                  "Clients must send one of these; repeatable. Visible in the process list: prefer the next")
      ->type_size(1)
      ->allow_extra_args(false)
      ->envname("SPEAR_API_KEY")
      ->group("Server");
  command.add_option("--api-key-file", options.key_file, "File with one key per line")
      ->type_name("FILE")
      ->group("Server");
  command.add_option("--tls-cert", http.tls_certificate, "Certificate chain, PEM")->type_name("FILE")->group("Server");
  command.add_option("--tls-key", http.tls_key, "Its key, PEM")->type_name("FILE")->group("Server");
  command.add_option("--cors-origin", http.cors_origin, "Origin whose pages may call the API, or *; default: none")
      ->group("Server");
  command.add_option("--max-connections", http.max_connections, "Beyond: 503")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Limits");
  command.add_option("--max-body", http.max_body_bytes, "Largest request body")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group("Limits");
  const auto seconds = [&](const char* name, int& value, const char* help) {
    command.add_option(name, value, help)->capture_default_str()->check(CLI::Range(1, 86400).description(""))->group(
        "Limits");
  };
  seconds("--header-timeout", http.header_seconds, "Seconds for the header of a request, and for a TLS handshake");
  seconds("--body-timeout", http.body_seconds, "Seconds for the body of a request");
  seconds("--idle-timeout", http.idle_seconds, "Seconds between two requests of a connection");
  seconds("--write-timeout", http.write_seconds, "Seconds that a client may leave an answer unread");
  command.add_option("--max-queue", options.server.max_queue, "Choices that run or wait; beyond: 429")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Limits");
  command.add_option("--drain-timeout", options.server.drain_seconds, "Seconds for running requests after SIGTERM")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber)
      ->group("Server");
  command
      .add_option("--watchdog-timeout", options.server.watchdog_seconds, "A step that takes longer turns /health red")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Server");
  command.add_flag("!--no-request-log", options.server.log_requests, "No line per request; texts are never logged")
      ->group("Server");
  command.add_option("--log-format", options.log_format, "text or json: one object per line, on stderr")
      ->check(CLI::IsMember({"text", "json"}).description(""))
      ->type_name("text|json")
      ->capture_default_str()
      ->group("Server");
}

void add_engine_options(CLI::App& command, ServeOptions& options) {
  command.add_option("--served-model-name", options.served_name, "Name in the API; default: the last part of --model")
      ->group("Model");
  command.add_option("--chat-template", options.chat_template, "Jinja file; default: the model's own")
      ->type_name("FILE")
      ->group("Model");
  command
      .add_option("--tool-format", options.tool_format,
                  "How the model writes tool calls; auto: as its chat template says, none: tools are refused")
      ->check(CLI::IsMember({"auto", "none", "hermes", "smollm", "llama3_json", "mistral"}).description(""))
      ->type_name("auto|none|hermes|smollm|llama3_json|mistral")
      ->capture_default_str()
      ->group("Model");
  command
      .add_option("--max-model-len", options.max_model_len,
                  "Tokens of prompt and output together; default: the model's positions")
      ->check(CLI::PositiveNumber)
      ->group("Engine");
  command.add_option("--kv-cache-memory", options.kv_cache_bytes, "Fixed at the start, never exceeded")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group("Engine");
  command.add_option("--max-num-seqs", options.max_num_seqs, "Requests that run at the same time")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Engine");
  command.add_option("--max-num-batched-tokens", options.max_batched_tokens, "Tokens of a step")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Engine");
  command.add_flag("!--no-prefix-caching", options.prefix_caching, "Compute every prompt from its start")
      ->group("Engine");
  command
      .add_option("--slo-ttft-ms", options.server.slo.ttft_ms,
                  "Objective of requests that name none: arrival to first token; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Engine");
  command.add_option("--slo-itl-ms", options.server.slo.itl_ms, "The same between two tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Engine");
}

}  // namespace

void add_serve_options(CLI::App& command, ServeOptions& options) {
  add_engine_options(command, options);
  add_scheduling_options(command, options.scheduling);
  add_http_options(command, options);
}

void take_environment(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty() || !option->get_envname().empty() || option->check_name("--help")) continue;
    std::string name = "SPEAR_";
    for (const char c : option->get_lnames().front()) {
      name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    option->envname(name);
  }
}

void log_config(const CLI::App& command) {
  log::Fields fields;
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty() || option->check_name("--help")) continue;
    const std::string& name = option->get_lnames().front();
    const auto& results = option->results();
    std::string value = results.empty() ? option->get_default_str() : fmt::format("{}", fmt::join(results, ","));
    if (name == "api-key" && !results.empty()) value = fmt::format("({} keys)", results.size());
    if (!value.empty()) fields.emplace_back(name, value);
  }
  log::event("config", fields);
}

}  // namespace spear::cli
