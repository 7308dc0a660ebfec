#include "server/http_server.h"

#include <csignal>
#include <random>
#include <unordered_map>

#include "base/error.h"
#include "base/log.h"
#include "server/http_session.h"

namespace spear {

namespace detail {

std::string response_head(int status, std::string_view content_type, std::int64_t length, bool chunked, bool keep_alive,
                          const HttpHeaders& headers, const std::string& request_id, const HttpServerOptions& options) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(status));
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\nServer: spear\r\n", status, std::string_view(reason.data(), reason.size()));
  if (!content_type.empty()) head += fmt::format("Content-Type: {}\r\n", content_type);
  if (length >= 0 && status != 204 && status != 304) head += fmt::format("Content-Length: {}\r\n", length);
  if (chunked) head += "Transfer-Encoding: chunked\r\n";
  head += keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  head += "X-Content-Type-Options: nosniff\r\n";
  if (!request_id.empty()) head += fmt::format("X-Request-Id: {}\r\n", request_id);
  if (!options.cors_origin.empty()) {
    head += fmt::format("Access-Control-Allow-Origin: {}\r\n", options.cors_origin);
    if (options.cors_origin != "*") head += "Vary: Origin\r\n";
  }
  for (const auto& [name, value] : headers) head += fmt::format("{}: {}\r\n", name, value);
  return head + "\r\n";
}

std::string error_response(int status, std::string_view message, const HttpServerOptions& options) {
  std::string quoted;
  for (const char c : message) quoted += c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20 ? '\'' : c;
  const std::string body = fmt::format(
      R"({{"error":{{"message":"{}","type":"invalid_request_error","param":null,"code":{}}}}})", quoted, status);
  const HttpHeaders headers = status == 503 ? HttpHeaders{{"Retry-After", "1"}} : HttpHeaders{};
  return response_head(status, "application/json", static_cast<std::int64_t>(body.size()), false, false, headers, {},
                       options) +
         body;
}

}  // namespace detail

namespace asio = boost::asio;
using asio::ip::tcp;

struct HttpServer::Context {
  asio::io_context io{1};
};

struct HttpServer::State final : detail::SessionHost, std::enable_shared_from_this<HttpServer::State> {
  State(asio::io_context& io, const HttpServerOptions& wanted, Handler wanted_handler)
      : settings(wanted), handler(std::move(wanted_handler)), context(io) {}

  const HttpServerOptions& options() const override { return settings; }
  void handle(std::shared_ptr<HttpExchange> exchange) override { handler(std::move(exchange)); }
  bool closing() const override { return is_closing; }
  void opened(detail::Connection* session, std::weak_ptr<detail::Connection> weak) override {
    sessions.emplace(session, std::move(weak));
  }
  void gone(detail::Connection* session) override { sessions.erase(session); }
  bool count_body(std::int64_t bytes) override {
    body_bytes += bytes;
    return bytes <= 0 || body_bytes <= static_cast<std::int64_t>(settings.max_bodies_bytes);
  }
  std::string new_request_id() override { return fmt::format("{:016x}{:016x}", random(), random()); }

  void listen();
  void accept();
  void admit(tcp::socket socket);
  void wait_for_signal();
  void tick();
  /// Calls `visit` for each connection; those that it ends take themselves out of the map.
  void for_all(const std::function<void(detail::Connection&)>& visit);

  HttpServerOptions settings;
  Handler handler;
  asio::io_context& context;
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  tcp::acceptor acceptor{context};
  asio::signal_set signals{context};
  std::function<void(int)> signal_handler;
  std::optional<asio::ssl::context> tls;
  std::unordered_map<detail::Connection*, std::weak_ptr<detail::Connection>> sessions;
  asio::steady_timer ticker{context};
  std::int64_t body_bytes = 0;
  bool is_closing = false;
  HttpServerStats totals;
  std::mt19937_64 random{std::random_device{}()};
};

void HttpServer::State::listen() {
  const std::string where = fmt::format("--host {} --port {}", settings.host, settings.port);
  boost::system::error_code error;
  if (settings.tls_certificate.empty() != settings.tls_key.empty()) {
    throw usage_error("a certificate and its key belong together", "--tls-cert, --tls-key", "give both, or none");
  }
  if (!settings.tls_certificate.empty()) {
    tls.emplace(asio::ssl::context::tls_server);
    tls->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
                     asio::ssl::context::no_tlsv1_1);
    if (tls->use_certificate_chain_file(settings.tls_certificate, error)) {
      throw usage_error(error.message(), "--tls-cert " + settings.tls_certificate, "give a PEM file that can be read");
    }
    if (tls->use_private_key_file(settings.tls_key, asio::ssl::context::pem, error)) {
      throw usage_error(error.message(), "--tls-key " + settings.tls_key, "give the certificate's key as a PEM file");
    }
  }
  tcp::resolver resolver(context);
  const auto found = resolver.resolve(settings.host, std::to_string(settings.port), tcp::resolver::passive, error);
  if (error) throw usage_error(error.message(), where, "give an address of this machine, or 0.0.0.0 for all");
  const tcp::endpoint endpoint = *found.begin();
  acceptor.open(endpoint.protocol());
  acceptor.set_option(tcp::acceptor::reuse_address(true));
  if (acceptor.bind(endpoint, error)) {
    throw usage_error(error.message(), where, "choose another port, or end the program that uses this one");
  }
  acceptor.listen(asio::socket_base::max_listen_connections);
  accept();
}

void HttpServer::State::accept() {
  acceptor.async_accept([self = shared_from_this()](boost::system::error_code error, tcp::socket socket) {
    if (!self->acceptor.is_open()) return;
    if (!error) {
      self->admit(std::move(socket));
      return self->accept();
    }
    // Out of file descriptors, most likely: trying again at once would only burn the processor.
    log::warn("cannot accept a connection: {}", error.message());
    auto timer = std::make_shared<asio::steady_timer>(self->context, std::chrono::milliseconds(100));
    timer->async_wait([self, timer](boost::system::error_code) {
      if (self->acceptor.is_open()) self->accept();
    });
  });
}

void HttpServer::State::admit(tcp::socket socket) {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  ++totals.accepted;
  if (sessions.size() >= settings.max_connections) {
    ++totals.refused;
    const std::string answer = detail::error_response(503, "too many connections", settings);
    ::send(socket.native_handle(), answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return;
  }
  if (tls) {
    using Stream = boost::beast::ssl_stream<boost::beast::tcp_stream>;
    std::make_shared<detail::Session<Stream>>(Stream(boost::beast::tcp_stream(std::move(socket)), *tls),
                                              shared_from_this())
        ->start();
  } else {
    using Stream = boost::beast::tcp_stream;
    std::make_shared<detail::Session<Stream>>(Stream(std::move(socket)), shared_from_this())->start();
  }
}

void HttpServer::State::wait_for_signal() {
  signals.async_wait([self = shared_from_this()](boost::system::error_code error, int signal) {
    if (error) return;
    self->signal_handler(signal);
    self->wait_for_signal();
  });
}

void HttpServer::State::for_all(const std::function<void(detail::Connection&)>& visit) {
  std::vector<std::shared_ptr<detail::Connection>> all;
  all.reserve(sessions.size());
  for (const auto& [session, weak] : sessions) {
    if (auto strong = weak.lock()) all.push_back(std::move(strong));
  }
  for (const auto& session : all) visit(*session);
}

void HttpServer::State::tick() {
  ticker.expires_after(std::chrono::milliseconds(500));
  ticker.async_wait([self = shared_from_this()](boost::system::error_code error) {
    if (error) return;
    const auto now = std::chrono::steady_clock::now();
    self->for_all([now](detail::Connection& session) { session.tick(now); });
    self->tick();
  });
}

HttpServer::HttpServer(const HttpServerOptions& options, Handler handler)
    : context_(std::make_unique<Context>()),
      state_(std::make_shared<State>(context_->io, options, std::move(handler))) {
  state_->listen();
  state_->tick();
}

HttpServer::~HttpServer() {
  stop();
  state_->work.reset();
  state_->for_all([](detail::Connection& session) { session.close(false); });
  state_.reset();
}

std::uint16_t HttpServer::port() const { return state_->acceptor.local_endpoint().port(); }

HttpServerStats HttpServer::stats() const {
  HttpServerStats stats = state_->totals;
  stats.connections = static_cast<std::int64_t>(state_->sessions.size());
  return stats;
}

void HttpServer::run() { state_->context.run(); }

void HttpServer::stop() { state_->context.stop(); }

void HttpServer::close_acceptor() {
  state_->is_closing = true;
  boost::system::error_code ignored;
  state_->acceptor.close(ignored);
  state_->for_all([](detail::Connection& session) { session.close(true); });
}

void HttpServer::post(std::function<void()> work) { asio::post(state_->context, std::move(work)); }

void HttpServer::after(double seconds, std::function<void()> work) {
  auto timer = std::make_shared<asio::steady_timer>(state_->context);
  timer->expires_after(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds)));
  timer->async_wait([timer, work = std::move(work)](boost::system::error_code error) {
    if (!error) work();
  });
}

void HttpServer::on_signal(std::function<void(int)> handler) {
  state_->signal_handler = std::move(handler);
  state_->signals.add(SIGINT);
  state_->signals.add(SIGTERM);
  state_->wait_for_signal();
}

}  // namespace spear
