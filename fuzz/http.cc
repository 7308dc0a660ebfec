// Bytes from anybody on a connection, in two pieces: what comes back is HTTP, and the connection ends.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "server/http_server.h"

using namespace spear;

namespace {

/// The kinds of answers there are: whole, streamed, later, none until the peer leaves.
void answer(const std::shared_ptr<HttpExchange>& exchange, HttpServer& server) {
  const HttpRequest& request = exchange->request();
  if (request.path == "/stream") {
    exchange->start_stream("text/event-stream");
    exchange->write("data: a\n\n");
    exchange->write("");
    server.post([exchange] {
      exchange->write("data: [DONE]\n\n");
      exchange->finish();
    });
  } else if (request.path == "/later") {
    server.post([exchange] { exchange->respond({200, "text/plain", "later", {}}); });
  } else {
    exchange->respond({request.body.size() % 2 == 0 ? 200 : 400, "application/json", request.body, {}});
  }
}

HttpServer& server() {
  static HttpServer* running = [] {
    HttpServerOptions options;
    options.port = 0;
    options.max_header_bytes = 2048;
    options.max_body_bytes = 4096;
    options.header_seconds = options.body_seconds = options.idle_seconds = options.write_seconds = 1;
    static HttpServer* self = nullptr;
    self = new HttpServer(options, [](std::shared_ptr<HttpExchange> exchange) { answer(exchange, *self); });
    std::thread([] { self->run(); }).detach();
    return self;
  }();
  return *running;
}

sockaddr_in loopback(std::uint32_t host, std::uint16_t port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(host);
  return address;
}

/// Each connection comes from an address of its own: a server that closes first keeps the pair of addresses for a minute,
/// and one client's ports would run out.
int connect_to_server() {
  static std::uint32_t connections = 0;
  const auto to = loopback(INADDR_LOOPBACK, server().port());
  while (true) {
    const auto from = loopback((127U << 24) + 1 + ++connections % 0xFFFF00, 0);
    const int peer = ::socket(AF_INET, SOCK_STREAM, 0);
    const linger at_once{1, 0};
    const int on = 1;
    ::setsockopt(peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    ::setsockopt(peer, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    const bool bound = peer >= 0 && ::bind(peer, reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0;
    if (bound && ::connect(peer, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return peer;
    if (errno != EINTR) {  // libFuzzer's clock
      std::perror("no connection to the server under test");
      std::abort();
    }
    ::close(peer);
  }
}

void send_all(int peer, const std::uint8_t* data, std::size_t size) {
  while (size > 0) {
    const ssize_t sent = ::send(peer, data, size, MSG_NOSIGNAL);
    if (sent <= 0) return;  // it has had enough
    data += sent;
    size -= static_cast<std::size_t>(sent);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const int peer = connect_to_server();
  const std::size_t cut = data[0] % size;
  send_all(peer, data + 1, cut);
  send_all(peer, data + 1 + cut, size - 1 - cut);
  ::shutdown(peer, SHUT_WR);
  std::string answer;
  char piece[4096];
  for (ssize_t got = 0; (got = ::recv(peer, piece, sizeof piece, 0)) > 0;) answer.append(piece, static_cast<std::size_t>(got));
  ::close(peer);
  if (!answer.empty() && !answer.starts_with("HTTP/1.")) std::abort();
  return 0;
}
