// The OpenAI-compatible server: routes, keys, limits, life and death of requests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine_thread.h"
#include "server/completion_job.h"
#include "server/generation_params.h"
#include "server/grammar_worker.h"
#include "server/http_server.h"
#include "server/metrics.h"

namespace spear {

struct ServerOptions {
  HttpServerOptions http;
  std::vector<std::string> api_keys;  ///< empty: everybody may
  std::int64_t max_queue = 256;       ///< choices in the engine, running ones included; beyond, 429
  double drain_seconds = 30;          ///< after SIGTERM, for requests that were admitted
  double watchdog_seconds = 5;        ///< a step that takes longer turns /health red
  Slo slo;                            ///< of requests that name none
  std::string version;
  bool log_requests = true;  ///< a line per request; never its text
};

/// Routes requests to the engine and its tokens back. Usable without sockets: handle() takes any exchange.
class Server {
 public:
  /// `post` runs work on the thread that calls handle(). Everything passed by reference must outlive the server.
  Server(Engine& engine, const ServedModel& model, ServerOptions options,
         std::function<void(std::function<void()>)> post);
  ~Server();

  void handle(const std::shared_ptr<HttpExchange>& exchange);

  /// From now on new work is refused; done() is called once nothing admitted is left.
  void drain(std::function<void()> done);
  /// Ends what is left of a drain that takes too long.
  void abandon_all();
  bool healthy() const;
  Metrics& metrics() { return metrics_; }
  EngineStats stats() const { return thread_.stats(); }

 private:
  using Route = HttpResponse (Server::*)(const HttpRequest&);
  struct Endpoint {
    const char *method, *path;
    Route handler;  ///< null: a completion
    bool open;      ///< without a key
  };
  static const Endpoint kEndpoints[];

  void dispatch(const std::shared_ptr<HttpExchange>& exchange);
  void check_key(const HttpRequest& request) const;
  void refuse(HttpExchange& exchange, const ApiError& error);
  void complete(const std::shared_ptr<HttpExchange>& exchange, bool chat);
  void start(GenerationParams params, const std::shared_ptr<HttpExchange>& exchange);
  void end_drain();
  void take(std::vector<TokenEvent> events);
  HttpResponse health(const HttpRequest& request);
  HttpResponse ready(const HttpRequest& request);
  HttpResponse models(const HttpRequest& request);
  HttpResponse tokenize(const HttpRequest& request);
  HttpResponse detokenize(const HttpRequest& request);
  HttpResponse metrics_text(const HttpRequest& request);
  HttpResponse version(const HttpRequest& request);
  HttpResponse openapi(const HttpRequest& request);
  HttpResponse page(const HttpRequest& request);

  const ServedModel& model_;
  ServerOptions options_;
  std::vector<std::string> key_digests_;
  std::function<void(std::function<void()>)> post_;
  Metrics metrics_;
  std::unordered_map<Ticket, std::shared_ptr<CompletionJob>> jobs_;
  std::int64_t compiling_ = 0;  // choices that wait for their grammar
  bool draining_ = false, abandoned_ = false;
  std::function<void()> drained_;
  std::int64_t created_ = 0;
  GrammarWorker grammars_;
  EngineThread thread_;  // last: it delivers into the members above
};

}  // namespace spear
