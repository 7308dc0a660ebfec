#include "engine/simulated_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"

namespace spear {
namespace {

constexpr std::int64_t kMaxRequests = 10'000'000, kMaxTokens = 10'000'000;

std::int64_t parse_tokens(std::string_view text, const std::string& all) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxTokens) {
    throw usage_error(fmt::format("'{}' is no mix of lengths", all), "--lengths",
                      "use sharegpt, or PROMPT:OUTPUT as in 512:128");
  }
  return value;
}

std::int64_t lognormal(Random& random, double median, double sigma, std::int64_t least, std::int64_t most) {
  const double value = median * std::exp(sigma * random.normal());
  return std::clamp(static_cast<std::int64_t>(std::min(value, 1e7)), least, most);
}

}  // namespace

std::vector<SimulatedRequest> make_load(const LoadOptions& options) {
  if (!(options.rate > 0) || !std::isfinite(options.rate))
    throw usage_error("no requests per second", "--rate", "give a positive number");
  if (options.count < 1 || options.count > kMaxRequests) {
    throw usage_error(fmt::format("{} requests", options.count), "--requests",
                      fmt::format("give 1 to {}", kMaxRequests));
  }
  if (!(options.long_fraction >= 0 && options.long_fraction <= 1))
    throw usage_error("no fraction", "--long-fraction", "give 0 to 1");
  if (options.max_length < 2 || options.long_prompt < 1)
    throw usage_error("a length below 1", "--max-length", "give more");
  std::int64_t prompt = 0, output = 0;
  if (options.lengths != "sharegpt") {
    const auto colon = options.lengths.find(':');
    const std::string_view text = options.lengths;
    prompt = parse_tokens(text.substr(0, colon), options.lengths);
    output = parse_tokens(colon == std::string::npos ? "" : text.substr(colon + 1), options.lengths);
  }
  Random gaps(options.seed, 1), lengths(options.seed, 2), kinds(options.seed, 3);
  std::vector<SimulatedRequest> load(static_cast<std::size_t>(options.count));
  double time = 0;
  for (SimulatedRequest& request : load) {
    time += -std::log(1.0 - gaps.uniform());
    request.arrival = time;
    request.prompt = prompt > 0 ? prompt : lognormal(lengths, 90, 1.3, 4, 2048);
    request.output = output > 0 ? output : lognormal(lengths, 145, 0.8, 4, 1024);
    if (kinds.uniform() < options.long_fraction) request.prompt = options.long_prompt;
    request.prompt = std::min(request.prompt, options.max_length - 1);
    request.output = std::min(request.output, options.max_length - request.prompt);
    request.slo = options.slo;
  }
  const double scale = static_cast<double>(options.count) / options.rate / time;
  for (SimulatedRequest& request : load) request.arrival *= scale;
  return load;
}

std::vector<SimulatedRequest> read_load(const std::filesystem::path& path, const LoadOptions& options) {
  std::istringstream lines(read_text_file(path));
  std::vector<SimulatedRequest> load;
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto error = [&](const std::string& what) {
      return bad_input(what, fmt::format("{}:{}", path.string(), number),
                       R"(write lines such as {"arrival_s":0.5,"prompt_tokens":100,"output_tokens":50})");
    };
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) throw error("is no JSON object");
    const auto value = [&](const char* name, std::optional<double> fallback, double least, double most) {
      const auto found = json.find(name);
      if (found == json.end() && fallback) return *fallback;
      if (found == json.end() || !found->is_number()) throw error(fmt::format("needs a number \"{}\"", name));
      const double number = found->get<double>();
      if (!(number >= least && number <= most)) throw error(fmt::format("\"{}\" is out of range", name));
      return number;
    };
    SimulatedRequest request;
    request.arrival = value("arrival_s", {}, 0, 1e9);
    request.prompt = static_cast<std::int64_t>(value("prompt_tokens", {}, 1, kMaxTokens));
    request.output = static_cast<std::int64_t>(value("output_tokens", {}, 1, kMaxTokens));
    request.priority = static_cast<int>(value("priority", 0, -1e6, 1e6));
    request.slo.ttft_ms = value("ttft_ms", options.slo.ttft_ms, 0, 1e9);
    request.slo.itl_ms = value("itl_ms", options.slo.itl_ms, 0, 1e9);
    load.push_back(request);
    if (static_cast<std::int64_t>(load.size()) > kMaxRequests) throw error("is one request too many");
  }
  if (load.empty()) throw bad_input("holds no request", path.string());
  std::stable_sort(load.begin(), load.end(), [](const auto& a, const auto& b) { return a.arrival < b.arrival; });
  return load;
}

}  // namespace spear
