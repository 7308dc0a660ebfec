#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/resources.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "engine/engine.h"
#include "engine/model_summary.h"
#include "server/server.h"

namespace spear::cli {
namespace {

struct Options {
  ServerOptions server;
  std::string served_name, key_file;
  std::uint64_t kv_cache_bytes = std::uint64_t{1} << 30;
  std::int64_t max_num_seqs = 32, max_model_len = 0, max_batched_tokens = 512;
  bool prefix_caching = true;
};

/// Keys, one per line; empty lines and those that begin with # are left out.
std::vector<std::string> read_keys(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw usage_error("cannot read the file", "--api-key-file " + path, "give a file with one key per line");
  std::vector<std::string> keys;
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line.front() != '#') keys.push_back(line);
  }
  // An empty file must not open the server to everybody.
  if (keys.empty()) throw usage_error("the file holds no key", "--api-key-file " + path, "write one key per line");
  return keys;
}

ServedModel served_model(const ModelOptions& model_options, const Options& options, const CpuModel& model,
                         const Tokenizer& tokenizer) {
  ServedModel served;
  served.root = model_options.model;
  std::string path = model_options.model;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  served.name = options.served_name.empty() ? std::filesystem::path(path).filename().string() : options.served_name;
  served.tokenizer = &tokenizer;
  if (!tokenizer.chat_template().empty()) served.chat_template.emplace(tokenizer.chat_template());
  const ModelConfig& config = model.config();
  served.max_model_len = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  if (served.max_model_len > config.max_position_embeddings) {
    throw usage_error(fmt::format("the model has {} positions", config.max_position_embeddings), "--max-model-len",
                      "ask for fewer");
  }
  served.vocab_size = config.vocab_size;
  served.stop_token_ids = config.eos_token_ids;
  for (const std::int32_t id : tokenizer.named().end) served.stop_token_ids.push_back(id);
  served.defaults.temperature = 1.0;
  const bool has_compensators = !summarize(model.weights()).compensators.empty();
  served.compensator_density = has_compensators && wants_compensators(model_options) ? 1.0 : 0.0;
  return served;
}

EngineOptions engine_options(const Options& options, const ModelOptions& model_options, const CpuModel& model,
                             const ServedModel& served) {
  EngineOptions engine;
  engine.kv_cache_type = model_options.kv_cache_type;
  engine.max_num_seqs = options.max_num_seqs;
  engine.prefix_caching = options.prefix_caching;
  engine.hash_seed = std::random_device{}() | (std::uint64_t{std::random_device{}()} << 32);
  const std::int64_t one = blocks_for(served.max_model_len, model.block_size());
  const std::int64_t block_bytes = model.block_bytes(engine.kv_cache_type);
  engine.num_blocks =
      std::min(static_cast<std::int64_t>(options.kv_cache_bytes) / block_bytes, one * options.max_num_seqs);
  if (engine.num_blocks < one) {
    throw usage_error(fmt::format("{} hold {} tokens, less than one sequence of {}",
                                  format_bytes(static_cast<double>(options.kv_cache_bytes)),
                                  engine.num_blocks * model.block_size(), served.max_model_len),
                      "--kv-cache-memory",
                      fmt::format("give at least {}, or a smaller --max-model-len",
                                  format_bytes(static_cast<double>(one * block_bytes))));
  }
  log::info("KV cache: {} tokens in {} ({}), {} requests of up to {} tokens", engine.num_blocks * model.block_size(),
            format_bytes(static_cast<double>(engine.num_blocks * block_bytes)), name(engine.kv_cache_type),
            engine.max_num_seqs, served.max_model_len);
  return engine;
}

/// First signal: drain. Second: end now.
void end_on_signals(HttpServer& http, Server& server, double drain_seconds) {
  http.on_signal([&http, &server, drain_seconds, signals = 0](int) mutable {
    // The last answers are still on their way out when the last token is known.
    const auto leave = [&http] {
      http.close_acceptor();
      http.after(0.2, [&http] { http.stop(); });
    };
    if (++signals > 1) return http.stop();
    log::info("shutting down: no new requests, {} s for those that run", drain_seconds);
    server.drain(leave);
    http.after(drain_seconds, [&server, leave] {
      log::warn("--drain-timeout is over: {} requests are cut", server.stats().running + server.stats().waiting);
      server.abandon_all();
      leave();
    });
  });
}

int run(const CommonOptions& common, const ModelOptions& model_options, Options options) {
  apply(common);
  if (!options.key_file.empty()) {
    const auto more = read_keys(options.key_file);
    options.server.api_keys.insert(options.server.api_keys.end(), more.begin(), more.end());
  }
  const Tokenizer tokenizer = load_tokenizer(model_options.model);
  CpuModel model = load_model(model_options.model, wants_compensators(model_options), common, model_options);
  const ServedModel served = served_model(model_options, options, model, tokenizer);
  const TokenBudgetPolicy policy(options.max_batched_tokens);
  Engine engine(model, policy, engine_options(options, model_options, model, served));
  options.server.version = SPEAR_VERSION;

  Server* routes = nullptr;
  HttpServer http(options.server.http, [&routes](std::shared_ptr<HttpExchange> exchange) { routes->handle(exchange); });
  Server server(engine, served, options.server, [&http](std::function<void()> work) { http.post(std::move(work)); });
  routes = &server;
  end_on_signals(http, server, options.server.drain_seconds);
  const std::string url = fmt::format("{}://{}:{}", options.server.http.tls_certificate.empty() ? "http" : "https",
                                      options.server.http.host, http.port());
  if (options.server.api_keys.empty() && options.server.http.host != "127.0.0.1" &&
      options.server.http.host != "localhost") {
    log::warn("anybody who reaches {} may use this server: consider --api-key-file", options.server.http.host);
  }
  log::info("{} is served at {}", served.name, url);
  if (common.json) print_json({{"schema", "spear.serve/1"}, {"url", url}, {"model", served.name}});
  print_next(common, fmt::format("curl {}/v1/chat/completions -H 'Content-Type: application/json' -d "
                                 "'{{\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'",
                                 url));
  http.run();
  const EngineStats stats = server.stats();
  log::info("served {} prompt and {} generated tokens, {} preemptions; {} of {} blocks free", stats.prompt_tokens,
            stats.generation_tokens, stats.preemptions, stats.free_blocks, stats.num_blocks);
  return 0;
}

void add_http_options(CLI::App& command, Options& options) {
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
}

}  // namespace

void add_serve(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<ModelOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command =
      line.add("serve", "Serve a model to OpenAI clients",
               {"spear serve --model recovered --port 8080",
                "spear serve --model recovered --host 0.0.0.0 --api-key-file keys --max-model-len 4096"},
               [=] { return run(*common, *model, *options); });
  add_model_options(command, model);
  add_kv_cache_option(command, &model->kv_cache_type);
  command.add_option("--served-model-name", options->served_name, "Name in the API; default: the last part of --model")
      ->group("Model");
  command
      .add_option("--max-model-len", options->max_model_len,
                  "Tokens of prompt and output together; default: the model's positions")
      ->check(CLI::PositiveNumber)
      ->group("Engine");
  command.add_option("--kv-cache-memory", options->kv_cache_bytes, "Fixed at the start, never exceeded")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group("Engine");
  command.add_option("--max-num-seqs", options->max_num_seqs, "Requests that run at the same time")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Engine");
  command.add_option("--max-num-batched-tokens", options->max_batched_tokens, "Tokens of a step")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Engine");
  command.add_flag("!--no-prefix-caching", options->prefix_caching, "Compute every prompt from its start")
      ->group("Engine");
  add_http_options(command, *options);
  add_common_options(command, common);
  command.set_config("--config", "", "Options from a TOML file; the command line wins")->group("Server");
}

}  // namespace spear::cli
