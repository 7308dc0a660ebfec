// Requests that a simulation is made of: drawn from a seed, or read from a trace.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/request.h"

namespace spear {

struct SimulatedRequest {
  double arrival = 0;  ///< seconds
  std::int64_t prompt = 1, output = 1;
  int priority = 0;
  Slo slo = {};
};

/// Lengths: "sharegpt" (lognormal, means near those of ShareGPT conversations: 210 and 200), or "P:O" for prompts of P
/// and outputs of O tokens each.
struct LoadOptions {
  double rate = 4;  ///< requests per second
  std::int64_t count = 1000;
  std::string lengths = "sharegpt";
  double long_fraction = 0;         ///< of the prompts ...
  std::int64_t long_prompt = 8192;  ///< ... have this many tokens
  std::int64_t max_length = 8192;   ///< prompt and output together
  Slo slo = {};
  std::uint64_t seed = 1;
};

/// Poisson arrivals, scaled so that the last one comes at count / rate, as `vllm bench serve` does. Requests do not
/// depend on the rate: a higher one brings the same ones faster. Throws Error(usage).
std::vector<SimulatedRequest> make_load(const LoadOptions& options);

/// One JSON object per line: arrival_s, prompt_tokens, output_tokens, and optionally priority, ttft_ms, itl_ms. Sorted
/// by arrival. Throws Error(bad_input) naming the line.
std::vector<SimulatedRequest> read_load(const std::filesystem::path& path, const LoadOptions& options);

}  // namespace spear
