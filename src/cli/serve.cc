#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/resources.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "cli/serve_options.h"
#include "engine/engine.h"
#include "engine/model_summary.h"
#include "server/server.h"

namespace spear::cli {
namespace {

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

/// What a model's authors advise, over OpenAI's defaults: as vLLM does.
SamplingOptions default_sampling(const std::string& model) {
  SamplingOptions defaults;
  defaults.temperature = 1.0;
  const auto path = std::filesystem::path(model) / "generation_config.json";
  std::ifstream file(path);
  if (!file) return defaults;
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object()) throw bad_input("not a JSON object", path.string(), "fetch the model again");
  const auto take = [&](const char* name, auto& value, double low, double high) {
    const auto found = json.find(name);
    if (found == json.end() || found->is_null()) return;
    if (!found->is_number() || !(found->template get<double>() >= low && found->template get<double>() <= high)) {
      throw bad_input(fmt::format("\"{}\" must be between {} and {}", name, low, high), path.string(), "correct it");
    }
    value = found->template get<std::remove_reference_t<decltype(value)>>();
    log::info("{}: {} is {} where a request does not say", path.filename().string(), name, found->dump());
  };
  take("temperature", defaults.temperature, 0, 100);
  take("top_k", defaults.top_k, 0, 1 << 20);
  take("top_p", defaults.top_p, 1e-6, 1);
  take("min_p", defaults.min_p, 0, 1);
  take("repetition_penalty", defaults.repetition_penalty, 1e-3, 100);
  return defaults;
}

ServedModel served_model(const ModelOptions& model_options, const ServeOptions& options, const CpuModel& model,
                         const Tokenizer& tokenizer) {
  ServedModel served;
  served.root = model_options.model;
  std::string path = model_options.model;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  served.name = options.served_name.empty() ? std::filesystem::path(path).filename().string() : options.served_name;
  served.tokenizer = &tokenizer;
  const std::string source = options.chat_template.empty()
                                 ? tokenizer.chat_template()
                                 : read_text_file(options.chat_template, std::size_t{1} << 20);
  if (!source.empty()) served.chat_template.emplace(source);
  served.tool_format = options.tool_format == "auto" ? detect_tool_format(source) : tool_format(options.tool_format);
  const ModelConfig& config = model.config();
  served.max_model_len = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  if (served.max_model_len > config.max_position_embeddings) {
    throw usage_error(fmt::format("the model has {} positions", config.max_position_embeddings), "--max-model-len",
                      "ask for fewer");
  }
  served.vocab_size = config.vocab_size;
  served.stop_token_ids = config.eos_token_ids;
  for (const std::int32_t id : tokenizer.named().end) served.stop_token_ids.push_back(id);
  served.defaults = default_sampling(model_options.model);
  const bool has_compensators = !summarize(model.weights()).compensators.empty();
  served.compensator_density = has_compensators && model_options.density() > 0 ? 1.0 : 0.0;
  return served;
}

EngineOptions engine_options(const ServeOptions& options, const ModelOptions& model_options, const CpuModel& model,
                             const ServedModel& served) {
  EngineOptions engine;
  engine.kv_cache_type = model_options.kv_cache_type;
  engine.max_num_seqs = options.max_num_seqs;
  engine.prefix_caching = options.prefix_caching;
  engine.scheduler = options.scheduling.scheduler;
  engine.scheduler.max_batched_tokens = options.max_batched_tokens;
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

/// Every connection is a file; the soft limit is often 1,024.
void raise_file_limit(std::size_t connections) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < connections + 64) {
    log::warn("{} open files are allowed, fewer than --max-connections {} needs: raise 'ulimit -n'", limit.rlim_cur,
              connections);
  }
}

/// A step that never ends must not keep the process from ending.
void leave_within(double seconds) {
  std::thread([seconds] {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    log::error("the engine does not end: leaving without it");
    std::_Exit(static_cast<int>(ExitCode::failed));
  }).detach();
}

int run(const CLI::App& command, const CommonOptions& common, const ModelOptions& model_options, ServeOptions options) {
  apply(common);
  if (options.log_format == "json") log::use_json();
  log_config(command);
  raise_file_limit(options.server.http.max_connections);
  if (!options.key_file.empty()) {
    const auto more = read_keys(options.key_file);
    options.server.api_keys.insert(options.server.api_keys.end(), more.begin(), more.end());
  }
  auto weights = std::async(std::launch::async, [&] { return read_weights(model_options.model, model_options); });
  const Tokenizer tokenizer = load_tokenizer(model_options.model);
  CpuModel model = make_model(weights.get(), model_options.model, common, model_options);
  options.scheduling.scheduler.density = model_options.density() > 0 ? model_options.density() : 1.0;
  const ServedModel served = served_model(model_options, options, model, tokenizer);
  const TokenBudgetPolicy policy(options.max_batched_tokens);
  std::optional<LatencyModel> latency = prepare_scheduler(options.scheduling, model, model_options);
  const EngineOptions engine_settings = engine_options(options, model_options, model, served);
  std::optional<Engine> engine;
  if (latency) {
    engine.emplace(model, *latency, engine_settings);
  } else {
    engine.emplace(model, policy, engine_settings);
  }
  options.server.version = SPEAR_VERSION;

  Server* routes = nullptr;
  HttpServer http(options.server.http, [&routes](std::shared_ptr<HttpExchange> exchange) { routes->handle(exchange); });
  Server server(*engine, served, options.server, [&http](std::function<void()> work) { http.post(std::move(work)); });
  routes = &server;
  end_on_signals(http, server, options.server.drain_seconds);
  const std::string url = fmt::format("{}://{}:{}", options.server.http.tls_certificate.empty() ? "http" : "https",
                                      options.server.http.host, http.port());
  if (options.server.api_keys.empty() && options.server.http.host != "127.0.0.1" &&
      options.server.http.host != "localhost") {
    log::warn("anybody who reaches {} may use this server: consider --api-key-file", options.server.http.host);
  }
  log::info("{} is served at {}", served.name, url);
  if (common.json) {
    print_json({{"schema", "spear.serve/1"}, {"url", url}, {"model", served.name}});
    std::fflush(stdout);  // whoever started the server waits for it
  }
  print_next(common, fmt::format("curl {}/v1/chat/completions -H 'Content-Type: application/json' -d "
                                 "'{{\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'",
                                 url));
  http.run();
  leave_within(5);
  const EngineStats stats = server.stats();
  log::info("served {} prompt and {} generated tokens, {} preemptions; {} of {} blocks free", stats.prompt_tokens,
            stats.generation_tokens, stats.preemptions, stats.free_blocks, stats.num_blocks);
  return 0;
}

}  // namespace

void add_serve(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<ModelOptions>();
  auto options = std::make_shared<ServeOptions>();
  auto self = std::make_shared<const CLI::App*>();
  CLI::App& command = line.add(
      "serve", "Serve a model to OpenAI clients; options also from --config FILE ([serve] in TOML) or SPEAR_...",
      {"spear serve --model recovered --port 8080",
       "spear serve --model recovered --host 0.0.0.0 --api-key-file keys --max-model-len 4096"},
      [=] { return run(**self, *common, *model, *options); });
  *self = &command;
  add_model_options(command, model);
  add_kv_cache_option(command, &model->kv_cache_type);
  add_serve_options(command, *options);
  add_common_options(command, common);
  take_environment(command);
  // CLI11 reads files for the program only: a section [serve] holds the options, and what is unknown is an error.
  command.fallthrough();
  line.root().set_config("--config", "", "TOML file: a section per command; the command line wins");
  line.root().allow_config_extras(CLI::config_extras_mode::error);
}

}  // namespace spear::cli
