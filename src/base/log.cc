#include "base/log.h"

#include <fmt/format.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace spear::log {
namespace {

std::atomic<bool> json_lines{false};
constexpr char kMembers = '\x01';  // begins a text that is members of a JSON object already

std::string json_quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

/// %*: the message as members of a JSON object.
class JsonMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string_view text(message.payload.data(), message.payload.size());
    const std::string members =
        text.starts_with(kMembers) ? std::string(text.substr(1)) : "\"message\":" + json_quoted(text);
    out.append(members.data(), members.data() + members.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return spdlog::details::make_unique<JsonMessage>(); }
};

}  // namespace

void init(bool quiet) {
  const bool colour = isatty(STDERR_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(colour ? spdlog::color_mode::automatic
                                                                           : spdlog::color_mode::never);
  auto logger = std::make_shared<spdlog::logger>("spear", sink);
  logger->set_pattern("%H:%M:%S %^%l%$ %v");
  logger->set_level(quiet ? spdlog::level::warn : spdlog::level::info);
  spdlog::set_default_logger(logger);
}

void use_json() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
  formatter->add_flag<JsonMessage>('*').set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",%*})");
  spdlog::set_formatter(std::move(formatter));
  json_lines = true;
}

void event(std::string_view name, const Fields& fields) {
  std::string line = json_lines ? kMembers + ("\"message\":" + json_quoted(name)) : std::string(name);
  for (const auto& [key, value] : fields) {
    line += json_lines ? "," + json_quoted(key) + ":" + json_quoted(value) : fmt::format(" {}={}", key, value);
  }
  spdlog::info("{}", line);
}

}  // namespace spear::log
