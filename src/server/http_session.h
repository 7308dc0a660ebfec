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

/// What a session needs of the server that made it.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  virtual const HttpServerOptions& options() const = 0;
  virtual void handle(std::shared_ptr<HttpExchange> exchange) = 0;
  virtual bool closing() const = 0;
  virtual void opened(void* session, std::function<void()> close_if_idle) = 0;
  virtual void gone(void* session) = 0;
  virtual std::string new_request_id() = 0;
};

class Connection {
 public:
  virtual ~Connection() = default;
  /// The next bytes of the answer; `last`: the answer is complete with them.
  virtual void send(std::string bytes, bool last) = 0;
};

/// "HTTP/1.1 200 OK\r\n..." with the headers that every answer has; `length` < 0: chunked, or up to the end.
std::string response_head(int status, std::string_view content_type, std::int64_t length, bool chunked, bool keep_alive,
                          const HttpHeaders& headers, const std::string& request_id, const HttpServerOptions& options);

/// The answer to what is no acceptable request.
std::string error_response(int status, std::string_view message, const HttpServerOptions& options);

class Exchange final : public HttpExchange {
 public:
  Exchange(std::weak_ptr<Connection> connection, HttpRequest request, bool chunked, bool keep_alive,
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
    if (auto callback = std::exchange(on_close_, nullptr)) callback();
  }
  void complete() { on_close_ = nullptr; }  // breaks the cycle with whoever it belongs to

 private:
  void send(std::string bytes, bool last) {
    if (closed_ || std::exchange(ended_, last)) return;
    if (const auto connection = connection_.lock()) connection->send(std::move(bytes), last);
  }

  std::weak_ptr<Connection> connection_;
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
  ~Session() override { host_->gone(this); }

  void start() {
    host_->opened(this, [weak = this->weak_from_this()] {
      if (const auto self = weak.lock(); self && !self->exchange_) self->shut();
    });
    if constexpr (kTls) {
      lowest().expires_after(std::chrono::seconds(host_->options().header_seconds));
      stream_.async_handshake(asio::ssl::stream_base::server,
                              [self = this->shared_from_this()](beast::error_code error) {
                                if (!error) self->wait_for_request();
                              });
    } else {
      wait_for_request();
    }
  }

  void send(std::string bytes, bool last) override {
    unsent_ += bytes.size();
    if (unsent_ > host_->options().max_unsent_bytes && !out_.empty()) return drop();
    out_.push_back(std::move(bytes));
    last_ = last_ || last;
    if (out_.size() == 1) write_next();
  }

 private:
  static constexpr bool kTls = !std::is_same_v<Stream, beast::tcp_stream>;

  beast::tcp_stream& lowest() { return beast::get_lowest_layer(stream_); }
  asio::ip::tcp::socket& socket() { return lowest().socket(); }

  /// Idle: no limit on a header that has not begun, but one on the time between requests.
  void wait_for_request() {
    if (host_->closing()) return shut();
    if (buffer_.size() > 0) return read_header();
    lowest().expires_after(std::chrono::seconds(host_->options().idle_seconds));
    stream_.async_read_some(buffer_.prepare(4096),
                            [self = this->shared_from_this()](beast::error_code error, std::size_t bytes) {
                              if (error) return self->shut();
                              self->buffer_.commit(bytes);
                              self->read_header();
                            });
  }

  void read_header() {
    const HttpServerOptions& options = host_->options();
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(options.max_header_bytes));
    parser_->body_limit(options.max_body_bytes);
    lowest().expires_after(std::chrono::seconds(options.header_seconds));
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = this->shared_from_this()](beast::error_code error, std::size_t) {
                              if (error) return self->refuse(error);
                              self->read_body();
                            });
  }

  void read_body() {
    const auto read = [self = this->shared_from_this()] {
      self->lowest().expires_after(std::chrono::seconds(self->host_->options().body_seconds));
      http::async_read(self->stream_, self->buffer_, *self->parser_, [self](beast::error_code error, std::size_t) {
        if (error) return self->refuse(error);
        self->handle();
      });
    };
    const auto expect = parser_->get()[http::field::expect];
    if (expect.empty()) return read();
    if (!beast::iequals(expect, "100-continue")) return refuse_with(417, "only 'Expect: 100-continue' is known");
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(stream_, asio::buffer(kContinue),
                      [self = this->shared_from_this(), read](beast::error_code error, std::size_t) {
                        if (error) return self->shut();
                        read();
                      });
  }

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
    lowest().expires_never();
    exchange_ =
        std::make_shared<Exchange>(this->weak_from_this(), std::move(request), chunked, keep_alive, host_->options());
    watch_peer();
    host_->handle(exchange_);
  }

  /// Notices a peer that leaves while its answer is being made. Bytes that arrive are its next request: they wait.
  void watch_peer() {
    if (buffer_.size() > 0) return;
    socket().async_wait(asio::socket_base::wait_read,
                        [self = this->shared_from_this(), exchange = exchange_](beast::error_code error) {
                          if (error || self->exchange_ != exchange) return;
                          char byte = 0;
                          const auto got = ::recv(self->socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
                          if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) self->drop();
                        });
  }

  void write_next() {
    lowest().expires_after(std::chrono::seconds(host_->options().write_seconds));
    asio::async_write(stream_, asio::buffer(out_.front()),
                      [self = this->shared_from_this()](beast::error_code error, std::size_t) {
                        if (error) return self->drop();
                        self->unsent_ -= self->out_.front().size();
                        self->out_.pop_front();
                        self->lowest().expires_never();
                        if (!self->out_.empty()) return self->write_next();
                        if (self->last_) self->next();
                      });
  }

  /// The answer is out.
  void next() {
    if (!exchange_) return shut();
    const bool keep_alive = exchange_->keep_alive() && !host_->closing();
    exchange_->complete();
    exchange_.reset();
    last_ = false;
    if (!keep_alive) return shut();
    beast::error_code ignored;
    socket().cancel(ignored);  // the watch on the peer
    wait_for_request();
  }

  void refuse(beast::error_code error) {
    if (error == http::error::end_of_stream || error == asio::error::eof || error == asio::error::operation_aborted)
      return shut();
    if (error == beast::error::timeout) return refuse_with(408, "the request did not arrive in time");
    if (error == http::error::header_limit) return refuse_with(431, "the header is too long");
    if (error == http::error::body_limit) return refuse_with(413, "the body is too long");
    if (error.category() != http::make_error_code(http::error::bad_method).category()) return shut();
    refuse_with(400, "malformed HTTP: " + error.message());
  }

  void refuse_with(int status, const std::string& message) {
    exchange_.reset();
    if (status == 408) return shut();  // the stream is closed after a time-out
    send(error_response(status, message, host_->options()), true);
  }

  /// The peer is gone or not worth waiting for.
  void drop() {
    if (const auto exchange = std::exchange(exchange_, nullptr)) exchange->close();
    shut();
  }

  void shut() {
    beast::error_code ignored;
    // What the peer still sends must not turn the answer into a reset: end our side first.
    socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
    std::array<char, 4096> sink;
    for (int i = 0; i < 64 && ::recv(socket().native_handle(), sink.data(), sink.size(), MSG_DONTWAIT) > 0; ++i) {
    }
    lowest().close();
  }

  Stream stream_;
  std::shared_ptr<SessionHost> host_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<Exchange> exchange_;
  std::deque<std::string> out_;
  std::size_t unsent_ = 0;
  bool last_ = false;
};

}  // namespace spear::detail
