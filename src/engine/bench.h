// Tokens per second of the online plane beside what the machine's memory allows.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ops/cpu_model.h"

namespace spear {

/// Every combination is measured, compensators on and off by turns where the model has any.
struct BenchOptions {
  std::vector<std::int64_t> prompt_tokens = {512};  ///< prefill tests; empty: none
  std::int64_t gen_tokens = 32;                     ///< steps of a decode test; 0: none
  std::vector<std::int64_t> batch = {1};            ///< sequences that decode together
  std::vector<std::int64_t> context = {0};          ///< tokens in the cache before decoding starts
  std::vector<int> threads = {0};                   ///< 0: every usable core
  int repeats = 5;
  bool compensators_on = true, compensators_off = true;
  std::uint64_t seed = 1;
};

struct BenchResult {
  std::string test;  ///< "decode" or "prefill"
  int threads = 0;
  std::int64_t batch = 1, tokens = 0, context = 0;  ///< tokens: of the prompt, or steps per sequence
  bool compensators = false;
  std::vector<double> rates;     ///< tokens per second of each repeat, all sequences together
  double bytes_per_token = 0;    ///< weights' and cache's bytes read per token
  double roofline_fraction = 0;  ///< of the probe's rate, at the median

  double median() const;
};

struct BenchReport {
  std::map<int, double> probe_gb_s;  ///< by threads
  std::vector<BenchResult> results;
};

/// `progress` hears of each test before it starts. Prefill runs in chunks of 512 and gives the last token's logits; a
/// decode step gives the logits of every sequence. Throws Error(usage) for lists without a positive number.
BenchReport run_bench(CpuModel& model, const BenchOptions& options,
                      const std::function<void(const std::string&)>& progress = {});

/// spear.bench/1.
nlohmann::json to_json(const BenchReport& report);
std::string to_csv(const BenchReport& report);
std::string to_markdown(const BenchReport& report);
std::string to_table(const BenchReport& report);

}  // namespace spear
