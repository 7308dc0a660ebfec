// HTTP as the API sees it: a request, and the ways to answer it. Knows no sockets.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace spear {

struct HttpRequest {
  std::string method;  ///< "GET", "POST", ...
  std::string path;    ///< without the query
  std::string body;
  std::string content_type;
  std::string authorization;  ///< the header's value
  std::string origin;
  std::string if_none_match;
  std::string id;  ///< the client's X-Request-Id where it is a sane one, otherwise one of ours
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpHeaders headers = {};
};

/// One request and its answer: either respond(), or start_stream(), write()..., finish(). Everything on the server's
/// thread; calls after the peer left do nothing.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual const HttpRequest& request() const = 0;
  virtual void respond(HttpResponse response) = 0;

  /// Begins a 200 answer whose body comes in pieces.
  virtual void start_stream(std::string_view content_type) = 0;
  virtual void write(std::string piece) = 0;
  virtual void finish() = 0;

  /// Called once if the peer leaves, or reads too slowly, before the answer is complete.
  virtual void on_close(std::function<void()> callback) = 0;
  virtual bool closed() const = 0;
};

}  // namespace spear
