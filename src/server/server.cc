#include "server/server.h"

#include <fmt/format.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <set>

#include "base/file.h"
#include "base/log.h"
#include "server/api_error.h"
#include "server/api_schema.h"
#include "server/web_page.h"

namespace spear {
namespace {

using Json = nlohmann::json;

HttpResponse json_response(const Json& json) {
  return {200, "application/json", json.dump(-1, ' ', false, Json::error_handler_t::replace), {}};
}

}  // namespace

const Server::Endpoint Server::kEndpoints[] = {
    {"POST", "/v1/completions", nullptr, false},
    {"POST", "/v1/chat/completions", nullptr, false},
    {"GET", "/v1/models", &Server::models, false},
    {"POST", "/tokenize", &Server::tokenize, false},
    {"POST", "/detokenize", &Server::detokenize, false},
    {"GET", "/metrics", &Server::metrics_text, false},
    {"GET", "/version", &Server::version, false},
    {"GET", "/openapi.json", &Server::openapi, false},
    {"GET", "/health", &Server::health, true},
    {"GET", "/ready", &Server::ready, true},
    // The page holds no secret: it asks its user for the key.
    {"GET", "/", &Server::page, true},
    {"GET", "/app.js", &Server::page, true},
    {"GET", "/style.css", &Server::page, true},
};

Server::Server(Engine& engine, const ServedModel& model, ServerOptions options,
               std::function<void(std::function<void()>)> post)
    : model_(model),
      options_(std::move(options)),
      post_(std::move(post)),
      metrics_(model.name, options_.version, model.compensator_density),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      grammars_(*model.tokenizer, post_),
      thread_(
          engine,
          [this](std::vector<TokenEvent> events) {
            post_([this, events = std::make_shared<std::vector<TokenEvent>>(std::move(events))] {
              take(std::move(*events));
            });
          },
          [this](double seconds, const EngineStats& stats) { metrics_.step(seconds, stats); }) {
  // Digests have one length: comparing them tells nothing about the keys'.
  for (const auto& key : options_.api_keys) key_digests_.push_back(sha256_hex(std::string_view(key)));
}

Server::~Server() = default;

void Server::handle(const std::shared_ptr<HttpExchange>& exchange) {
  try {
    dispatch(exchange);
  } catch (const ApiError& error) {
    refuse(*exchange, error);
  } catch (const Error& error) {
    exchange->respond(api_error(error).response());
  } catch (const std::exception& error) {
    log::error("{} {}: {}", exchange->request().id, exchange->request().path, error.what());
    exchange->respond(
        ApiError(500, "server_error", "an internal error; the server's log has it under this request's id").response());
  }
}

void Server::refuse(HttpExchange& exchange, const ApiError& error) {
  metrics_.refused(error.status() == 429   ? "queue"
                   : error.status() == 503 ? "draining"
                   : error.status() == 401 ? "key"
                                           : "invalid");
  if (options_.log_requests) {
    // Paths and parameters are the client's text: what is unknown, or points into a schema, is not repeated.
    log::event("refused", {{"id", exchange.request().id},
                           {"status", std::to_string(error.status())},
                           {"path", error.status() == 404 ? "?" : exchange.request().path},
                           {"type", error.type()},
                           {"param", error.param().substr(0, error.param().find('/'))}});
  }
  exchange.respond(error.response());
}

void Server::dispatch(const std::shared_ptr<HttpExchange>& exchange) {
  const HttpRequest& request = exchange->request();
  std::string allowed;
  for (const Endpoint& endpoint : kEndpoints) {
    if (request.path != endpoint.path) continue;
    const bool matches =
        request.method == endpoint.method || (request.method == "HEAD" && std::string_view(endpoint.method) == "GET");
    if (matches) {
      if (!endpoint.open) check_key(request);
      if (endpoint.handler == nullptr) return complete(exchange, request.path == "/v1/chat/completions");
      return exchange->respond((this->*endpoint.handler)(request));
    }
    allowed += (allowed.empty() ? "" : ", ") + std::string(endpoint.method);
  }
  if (allowed.empty())
    throw ApiError(404, "not_found_error",
                   fmt::format("there is no {} here; /openapi.json lists what there is", request.path));
  if (request.method == "OPTIONS" && !options_.http.cors_origin.empty()) {
    return exchange->respond({204,
                              "",
                              "",
                              {{"Access-Control-Allow-Methods", allowed},
                               {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id"},
                               {"Access-Control-Max-Age", "3600"}}});
  }
  HttpResponse response = ApiError(405, "invalid_request_error",
                                   fmt::format("{} does not know {}; use {}", request.path, request.method, allowed))
                              .response();
  response.headers.emplace_back("Allow", allowed);
  exchange->respond(std::move(response));
}

void Server::check_key(const HttpRequest& request) const {
  if (key_digests_.empty()) return;
  static constexpr std::string_view kScheme = "Bearer ";
  const std::string_view header = request.authorization;
  const std::string digest =
      sha256_hex(header.starts_with(kScheme) ? header.substr(kScheme.size()) : std::string_view());
  int matches = 0;  // every key is compared, whichever fits
  for (const auto& key : key_digests_) matches |= CRYPTO_memcmp(key.data(), digest.data(), digest.size()) == 0 ? 1 : 0;
  if (matches == 0)
    throw ApiError(401, "authentication_error", "a valid key is needed: send 'Authorization: Bearer KEY'", {},
                   "invalid_api_key");
}

void Server::complete(const std::shared_ptr<HttpExchange>& exchange, bool chat) {
  const HttpRequest& request = exchange->request();
  if (!request.content_type.empty() && !request.content_type.starts_with("application/json")) {
    throw ApiError(415, "invalid_request_error", "the body must be application/json");
  }
  if (draining_) throw ApiError(503, "overloaded_error", "the server shuts down and takes no new requests");
  const auto body = checked_body(request.body, chat ? "ChatCompletionRequest" : "CompletionRequest");
  GenerationParams params = chat ? chat_params(body, model_) : completion_params(body, model_);
  const auto choices = static_cast<std::int64_t>(params.prompts.size()) * params.n;
  if (choices > options_.max_queue) {
    throw bad_request(fmt::format("{} choices in one request; this server takes {} at a time", choices,
                                  options_.max_queue), "n");
  }
  const std::int64_t taken = thread_.active() + compiling_;
  if (taken + choices > options_.max_queue) {
    throw ApiError(429, "overloaded_error", fmt::format("{} requests are waiting or running already", taken), {},
                   "queue_full");
  }
  Slo& slo = params.request.slo;
  if (slo.ttft_ms == 0) slo.ttft_ms = options_.slo.ttft_ms;
  if (slo.itl_ms == 0) slo.itl_ms = options_.slo.itl_ms;
  params.request.arrival = std::chrono::steady_clock::now();
  if (!params.output.constrained()) return start(std::move(params), exchange);
  compiling_ += choices;
  OutputFormat format = params.output;
  grammars_.make(std::move(format), [this, exchange, choices, params = std::move(params)](
                                        StructuredOutput::GrammarPtr grammar, std::optional<ApiError> error) mutable {
    compiling_ -= choices;
    if (abandoned_) error.emplace(503, "server_error", "the server shuts down; send the request again elsewhere");
    params.grammar = std::move(grammar);
    if (!exchange->closed()) {
      if (error) {
        refuse(*exchange, *error);
      } else {
        start(std::move(params), exchange);
      }
    }
    end_drain();
  });
}

void Server::start(GenerationParams params, const std::shared_ptr<HttpExchange>& exchange) {
  const CompletionJob::Engine engine{[this](Request wanted, std::shared_ptr<CompletionJob> job) {
                                       const Ticket ticket = thread_.submit(std::move(wanted));
                                       jobs_.emplace(ticket, std::move(job));
                                       return ticket;
                                     },
                                     [this](Ticket ticket) { thread_.cancel(ticket); }};
  std::make_shared<CompletionJob>(std::move(params), model_, exchange, engine, metrics_,
                                  options_.log_requests)
      ->start();
}

void Server::take(std::vector<TokenEvent> events) {
  for (const TokenEvent& event : events) {
    const auto found = jobs_.find(event.ticket);
    if (found == jobs_.end()) continue;
    const auto job = found->second;
    if (event.finished) jobs_.erase(found);
    job->take(event);
  }
  end_drain();
}

void Server::end_drain() {
  if (drained_ && jobs_.empty() && compiling_ == 0) std::exchange(drained_, nullptr)();
}

void Server::drain(std::function<void()> done) {
  draining_ = true;
  drained_ = std::move(done);
  end_drain();
}

void Server::abandon_all() {
  abandoned_ = true;
  const auto jobs = jobs_;  // a choice that ends takes itself out
  std::set<CompletionJob*> seen;
  for (const auto& [ticket, job] : jobs) {
    if (seen.insert(job.get()).second) job->abandon(FinishReason::interrupted);
  }
}

bool Server::healthy() const { return thread_.seconds_stuck() < options_.watchdog_seconds; }

HttpResponse Server::health(const HttpRequest&) {
  const double stuck = thread_.seconds_stuck();
  if (stuck < options_.watchdog_seconds) return json_response({{"status", "ok"}});
  return ApiError(503, "server_error", fmt::format("the engine has not moved for {:.1f} s", stuck)).response();
}

HttpResponse Server::ready(const HttpRequest& request) {
  if (draining_) return ApiError(503, "overloaded_error", "the server shuts down").response();
  return health(request);
}

HttpResponse Server::models(const HttpRequest&) {
  return json_response({{"object", "list"},
                        {"data", Json::array({{{"id", model_.name},
                                               {"object", "model"},
                                               {"created", created_},
                                               {"owned_by", "spear"},
                                               {"root", model_.root},
                                               {"parent", nullptr},
                                               {"max_model_len", model_.max_model_len}}})}});
}

HttpResponse Server::tokenize(const HttpRequest& request) {
  const auto body = checked_body(request.body, "TokenizeRequest");
  check_model(body, model_);
  const bool has_text = body.contains("prompt") || body.contains("content");
  if (has_text == body.contains("messages")) throw bad_request("give either prompt or messages", "prompt");
  for (const char* field : {"tools", "chat_template_kwargs"}) {
    if (has_text && body.contains(field)) throw bad_request(fmt::format("{} needs messages", field), field);
  }
  std::vector<std::int32_t> tokens;
  if (has_text) {
    const auto& text = (body.contains("prompt") ? body.at("prompt") : body.at("content")).get_ref<const std::string&>();
    const bool vllm = body.contains("prompt");
    EncodeOptions options;
    options.add_special = body.value("add_special_tokens", body.value("add_special", vllm));
    options.parse_special = body.value("parse_special", true);
    tokens = model_.tokenizer->encode(text, options);
  } else {
    auto extra = body.value("chat_template_kwargs", nlohmann::ordered_json::object());
    if (const auto tools = body.find("tools"); tools != body.end()) {
      check_tools(*tools, model_.tool_format);
      extra["tools"] = *tools;
    }
    tokens = chat_prompt(body.at("messages"), model_, body.value("add_generation_prompt", true), extra);
  }
  return json_response({{"tokens", tokens}, {"count", tokens.size()}, {"max_model_len", model_.max_model_len}});
}

HttpResponse Server::detokenize(const HttpRequest& request) {
  const auto body = checked_body(request.body, "DetokenizeRequest");
  check_model(body, model_);
  const auto tokens = body.at("tokens").get<std::vector<std::int32_t>>();
  const auto bad =
      std::find_if(tokens.begin(), tokens.end(), [&](std::int32_t t) { return t >= model_.tokenizer->vocab_size(); });
  if (bad != tokens.end())
    throw bad_request(fmt::format("token {} is outside the vocabulary of {}", *bad, model_.tokenizer->vocab_size()),
                      "tokens");
  const std::string text = model_.tokenizer->decode(tokens);
  return json_response({{"prompt", text}, {"content", text}});  // vLLM's name and llama-server's
}

HttpResponse Server::metrics_text(const HttpRequest&) {
  return {200, "text/plain; version=0.0.4; charset=utf-8", metrics_.text(), {}};
}

HttpResponse Server::version(const HttpRequest&) { return json_response({{"version", options_.version}}); }

HttpResponse Server::openapi(const HttpRequest&) { return json_response(openapi_document(options_.version)); }

HttpResponse Server::page(const HttpRequest& request) {
  const WebFile* file = find_web_file(request.path == "/" ? "/index.html" : request.path);
  if (file == nullptr) throw ApiError(404, "not_found_error", "this build has no web page");
  const HttpHeaders headers = {{"Content-Security-Policy",
                                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src "
                                "'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
                               {"Referrer-Policy", "no-referrer"},
                               {"Cache-Control", "no-cache"},
                               {"ETag", file->etag}};
  if (request.if_none_match == file->etag) return {304, "", "", headers};
  return {200, file->content_type, std::string(file->content), headers};
}

}  // namespace spear
