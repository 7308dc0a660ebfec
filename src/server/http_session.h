// One connection: requests one after the other, answers whole or in pieces. Included by http_server.cc alone.
#pragma once

#include <fmt/format.h>

#include <array>
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "server/http.h"
#include "server/http_server.h"

namespace spear::detail {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

using Time = std::chrono::steady_clock::time_point;

/// One peer, as its answers and its server see it.
class Connection {
 public:
  virtual ~Connection() = default;
  /// The next bytes of the answer; `last`: the answer is complete with them.
  virtual void send(std::string bytes, bool last) = 0;
  /// Ends what takes longer than its limit. Called about twice a second: cheaper than a timer per operation.
  virtual void tick(Time now) = 0;
  /// Ends the connection; `idle_only`: unless an answer is on its way.
  virtual void close(bool idle_only) = 0;
};

/// What a session needs of the server that made it.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  virtual const HttpServerOptions& options() const = 0;
  virtual void handle(std::shared_ptr<HttpExchange> exchange) = 0;
  virtual bool closing() const = 0;
  virtual void opened(Connection* session, std::weak_ptr<Connection> weak) = 0;
  virtual void gone(Connection* session) = 0;
  virtual std::string new_request_id() = 0;
  /// Counts the bytes of bodies that are still arriving, over all connections; false when they are too many.
  virtual bool count_body(std::int64_t bytes) = 0;
};

/// "HTTP/1.1 200 OK\r\n..." with the headers that every answer has; `length` < 0: chunked, or up to the end.
std::string response_head(int status, std::string_view content_type, std::int64_t length, bool chunked, bool keep_alive,
                          const HttpHeaders& headers, const std::string& request_id, const HttpServerOptions& options);

/// The answer to what is no acceptable request.
std::string error_response(int status, std::string_view message, const HttpServerOptions& options);

class Exchange final : public HttpExchange {
 public:
  Exchange(std::shared_ptr<Connection> connection, HttpRequest request, bool chunked, bool keep_alive,
           const HttpServerOptions& options)
      : connection_(std::move(connection)),
        request_(std::move(request)),
        chunked_(chunked),
        keep_alive_(keep_alive),
        options_(options) {}

  const HttpRequest& request() const override { return request_; }

  void respond(HttpResponse response) override {
    std::string bytes =
        response_head(response.status, response.content_type, static_cast<std::int64_t>(response.body.size()), false,
                      keep_alive_, response.headers, request_.id, options_);
    if (request_.method != "HEAD") bytes += response.body;
    send(std::move(bytes), true);
  }

  void start_stream(std::string_view content_type) override {
    if (!chunked_) keep_alive_ = false;  // HTTP/1.0 knows the end of the answer by the end of the connection
    send(response_head(200, content_type, -1, chunked_, keep_alive_, {{"Cache-Control", "no-cache"}}, request_.id,
                       options_),
         false);
  }
  void write(std::string piece) override {
    if (piece.empty()) return;  // an empty chunk would end the answer
    send(chunked_ ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : std::move(piece), false);
  }
  void finish() override { send(chunked_ ? "0\r\n\r\n" : "", true); }

  void on_close(std::function<void()> callback) override { on_close_ = std::move(callback); }
  bool closed() const override { return closed_; }

  bool keep_alive() const { return keep_alive_; }
  void close() {
    if (std::exchange(closed_, true)) return;
    connection_.reset();
    if (auto callback = std::exchange(on_close_, nullptr)) callback();
  }
  /// Breaks the cycles with the connection and with whoever waits for on_close().
  void complete() {
    on_close_ = nullptr;
    connection_.reset();
  }

 private:
  void send(std::string bytes, bool last) {
    if (closed_ || std::exchange(ended_, last)) return;
    if (const auto connection = connection_) connection->send(std::move(bytes), last);
  }

  std::shared_ptr<Connection> connection_;  // lives as long as somebody may answer
  HttpRequest request_;
  bool chunked_, keep_alive_;
  const HttpServerOptions& options_;
  bool closed_ = false, ended_ = false;
  std::function<void()> on_close_;
};

template <class Stream>
class Session final : public Connection, public std::enable_shared_from_this<Session<Stream>> {
 public:
  Session(Stream stream, std::shared_ptr<SessionHost> host) : stream_(std::move(stream)), host_(std::move(host)) {}
  ~Session() override {
    count_body(0);
    host_->gone(this);
  }

  void start() {
    host_->opened(this, this->weak_from_this());
    if constexpr (kTls) {
      read_deadline_ = after(host_->options().header_seconds);
      stream_.async_handshake(asio::ssl::stream_base::server,
                              [self = this->shared_from_this()](beast::error_code error) {
                                if (error) return self->drop();
                                self->advance();
                              });
    } else {
      advance();
    }
  }

  void send(std::string bytes, bool last) override {
    if (closed_) return;
    if (!writing_.empty() && writing_.size() + queued_.size() + bytes.size() > host_->options().max_unsent_bytes) {
      return drop();
    }
    queued_ += bytes;
    last_ = last_ || last;
    if (writing_.empty()) write_next();
  }

  void tick(Time now) override {
    if (now > write_deadline_) return drop();
    if (now <= read_deadline_) return;
    if (parser_) return refuse_with(408, "the request did not arrive in time");
    drop();
  }

  void close(bool idle_only) override {
    if (!idle_only || (!exchange_ && writing_.empty())) drop();
  }

 private:
  static constexpr bool kTls = !std::is_same_v<Stream, beast::tcp_stream>;
  static constexpr std::size_t kReadAhead = 64 << 10;  // of pipelined requests, while one is answered
  static constexpr Time kNever = Time::max();

  static Time after(int seconds) { return std::chrono::steady_clock::now() + std::chrono::seconds(seconds); }
  asio::ip::tcp::socket& socket() { return beast::get_lowest_layer(stream_).socket(); }

  /// There is always a read under way, also while an answer is made: this is how a peer that leaves is noticed.
  void read_some() {
    if (reading_ || closed_) return;
    reading_ = true;
    stream_.async_read_some(asio::buffer(chunk_),
                            [self = this->shared_from_this()](beast::error_code error, std::size_t bytes) {
                              self->reading_ = false;
                              if (error) return self->drop();
                              if (!self->discarding_) {
                                asio::buffer_copy(self->in_.prepare(bytes), asio::buffer(self->chunk_, bytes));
                                self->in_.commit(bytes);
                              }
                              self->advance();
                            });
  }

  /// Does what can be done with the bytes that are here.
  void advance() {
    if (closed_) return;
    if (discarding_) return read_some();
    if (exchange_) {
      if (in_.size() < kReadAhead) read_some();
      return;
    }
    if (!parser_) {
      if (host_->closing()) return drop();
      skip_empty_lines();
      if (in_.size() == 0) {
        read_deadline_ = after(host_->options().idle_seconds);
        return read_some();
      }
      parser_.emplace();
      parser_->header_limit(static_cast<std::uint32_t>(host_->options().max_header_bytes));
      parser_->body_limit(host_->options().max_body_bytes);
      read_deadline_ = after(host_->options().header_seconds);
    }
    parse();
  }

  void skip_empty_lines() {
    const auto* bytes = static_cast<const char*>(in_.data().data());
    std::size_t count = 0;
    while (count < in_.size() && (bytes[count] == '\r' || bytes[count] == '\n')) ++count;
    in_.consume(count);
  }

  void parse() {
    while (in_.size() > 0) {
      const bool had_header = parser_->is_header_done();
      beast::error_code error;
      const std::size_t used = parser_->put(in_.data(), error);
      in_.consume(used);
      if (error && error != http::error::need_more) return refuse(error);
      if (!count_body(static_cast<std::int64_t>(parser_->get().body().size()))) {
        return refuse_with(503, "too many request bodies are arriving at the same time");
      }
      if (!had_header && parser_->is_header_done() && !begin_body()) return;
      if (parser_->is_done()) return handle();
      if (used == 0) break;
    }
    read_some();
  }

  /// The header is here; false: refused.
  bool begin_body() {
    parser_->eager(true);
    read_deadline_ = after(host_->options().body_seconds);
    const auto expect = parser_->get()[http::field::expect];
    if (expect.empty() || parser_->is_done()) return true;
    if (beast::iequals(expect, "100-continue")) {
      send("HTTP/1.1 100 Continue\r\n\r\n", false);
      return true;
    }
    refuse_with(417, "only 'Expect: 100-continue' is known");
    return false;
  }

  bool count_body(std::int64_t bytes) { return host_->count_body(bytes - std::exchange(body_bytes_, bytes)); }

  void handle() {
    auto message = parser_->release();
    const auto text = [&](http::field field) { return std::string(message[field]); };
    HttpRequest request;
    request.method = std::string(message.method_string());
    const std::string target(message.target());
    request.path = target.substr(0, target.find('?'));
    request.content_type = text(http::field::content_type);
    request.authorization = text(http::field::authorization);
    request.origin = text(http::field::origin);
    request.if_none_match = text(http::field::if_none_match);
    request.id = std::string(message["X-Request-Id"]);
    const bool sane = !request.id.empty() && request.id.size() <= 64 &&
                      request.id.find_first_not_of(
                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == std::string::npos;
    if (!sane) request.id = host_->new_request_id();
    const bool chunked = message.version() >= 11, keep_alive = message.keep_alive() && !host_->closing();
    request.body = std::move(message.body());
    parser_.reset();
    count_body(0);
    read_deadline_ = kNever;
    const auto exchange =
        std::make_shared<Exchange>(this->shared_from_this(), std::move(request), chunked, keep_alive, host_->options());
    exchange_ = exchange;
    host_->handle(exchange);
    advance();
  }

  void write_next() {
    if (queued_.empty()) {
      write_deadline_ = kNever;
      if (last_) next();
      return;
    }
    writing_ = std::exchange(queued_, {});
    write_deadline_ = after(host_->options().write_seconds);
    asio::async_write(stream_, asio::buffer(writing_),
                      [self = this->shared_from_this()](beast::error_code error, std::size_t) {
                        if (error) return self->drop();
                        self->writing_.clear();
                        self->write_next();
                      });
  }

  /// The answer is out.
  void next() {
    last_ = false;
    const auto exchange = std::exchange(exchange_, nullptr);
    if (exchange) exchange->complete();
    if (!exchange || !exchange->keep_alive() || host_->closing()) return linger();
    advance();
  }

  /// Closing while bytes arrive would reset the connection and take the answer from a peer that has not read it yet.
  void linger() {
    discarding_ = true;
    read_deadline_ = after(2);
    beast::error_code ignored;
    socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
    read_some();
  }

  void refuse(beast::error_code error) {
    if (error == http::error::header_limit) return refuse_with(431, "the header is too long");
    if (error == http::error::body_limit) return refuse_with(413, "the body is too long");
    refuse_with(400, "malformed HTTP: " + error.message());
  }

  /// The connection ends with this answer: what follows cannot be told from the rest of a bad request.
  void refuse_with(int status, const std::string& message) {
    parser_.reset();
    count_body(0);
    discarding_ = true;
    in_.consume(in_.size());
    read_deadline_ = kNever;
    send(error_response(status, message, host_->options()), true);
    read_some();
  }

  /// The peer is gone or not worth waiting for.
  void drop() {
    if (std::exchange(closed_, true)) return;
    if (const auto exchange = std::exchange(exchange_, nullptr)) exchange->close();
    beast::error_code ignored;
    socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
    beast::get_lowest_layer(stream_).close();
  }

  Stream stream_;
  std::shared_ptr<SessionHost> host_;
  std::array<char, 4096> chunk_;
  beast::flat_buffer in_;  // has arrived, not parsed yet
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<Exchange> exchange_;
  std::string writing_, queued_;
  Time read_deadline_ = kNever, write_deadline_ = kNever;
  std::int64_t body_bytes_ = 0;
  bool reading_ = false, last_ = false, discarding_ = false, closed_ = false;
};

}  // namespace spear::detail
