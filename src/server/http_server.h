// Sockets: accepts connections, reads requests within limits, writes answers. The only users of Boost.Beast are its .cc
// files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "server/http.h"

namespace spear {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;             ///< 0: any free one
  std::string tls_certificate, tls_key;  ///< PEM files; both or none
  std::size_t max_header_bytes = 16 << 10;
  std::size_t max_body_bytes = 8 << 20;
  std::size_t max_bodies_bytes = 256 << 20;  ///< of all bodies that are arriving
  std::size_t max_connections = 4096;
  std::size_t max_unsent_bytes = 4 << 20;  ///< of one answer; a peer that reads slower is left
  int idle_seconds = 75;                   ///< between two requests
  int header_seconds = 10, body_seconds = 60, write_seconds = 60;
  std::string cors_origin;  ///< "*" or one origin; empty: no CORS headers
};

struct HttpServerStats {
  std::int64_t connections = 0, accepted = 0, refused = 0;
};

/// Everything runs on the thread that calls run(), except post().
class HttpServer {
 public:
  using Handler = std::function<void(std::shared_ptr<HttpExchange>)>;

  /// Listens from here on. Throws Error(usage) for an address or certificate that cannot be used.
  HttpServer(const HttpServerOptions& options, Handler handler);
  ~HttpServer();

  std::uint16_t port() const;
  HttpServerStats stats() const;

  /// Until stop().
  void run();
  void stop();
  /// No further connection is accepted; those that are idle are closed, the others after their answer.
  void close_acceptor();

  void post(std::function<void()> work);  ///< any thread
  void after(double seconds, std::function<void()> work);
  void on_signal(std::function<void(int)> handler);  ///< SIGINT and SIGTERM, every time

 private:
  struct Context;
  struct State;
  std::unique_ptr<Context> context_;  // outlives the state: its handlers hold sessions, and those the state
  std::shared_ptr<State> state_;
};

}  // namespace spear
