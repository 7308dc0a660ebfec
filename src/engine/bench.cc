#include "engine/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/random.h"
#include "engine/bandwidth_probe.h"
#include "engine/median.h"

namespace spear {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kPrefillChunk = 512;
constexpr std::int64_t kRefilledContext = 1024;  // above, a cache goes on growing: filling it again would take minutes

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocabulary, Random& random) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(count));
  for (auto& token : out) token = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocabulary)));
  return out;
}

class Bench {
 public:
  Bench(CpuModel& model, const BenchOptions& options) : model_(model), options_(options), random_(options.seed) {}

  /// Tokens per second of one prefill of `tokens`.
  double prefill(std::int64_t tokens) {
    const auto cache = model_.make_cache(1, tokens);
    std::vector<float> logits(static_cast<std::size_t>(config().vocab_size));
    const auto start = Clock::now();
    fill(*cache, 1, tokens, logits);
    return static_cast<double>(tokens) / seconds_since(start);
  }

  /// Tokens per second of gen_tokens steps of `batch` sequences behind `context` tokens.
  double decode(std::int64_t batch, std::int64_t context, std::int64_t runs) {
    const std::int64_t steps = options_.gen_tokens;
    if (context <= kRefilledContext) cache_.reset();
    if (cache_ == nullptr) {
      cache_ = model_.make_cache(batch, context + steps * (context <= kRefilledContext ? 1 : runs) + kWarmSteps);
      std::vector<float> logits(static_cast<std::size_t>(config().vocab_size));
      if (context > 0) fill(*cache_, batch, context, logits);
    }
    logits_.resize(static_cast<std::size_t>(batch * config().vocab_size));
    if (context == 0) step(batch);  // the first step touches new pages
    const auto start = Clock::now();
    for (std::int64_t i = 0; i < steps; ++i) step(batch);
    return static_cast<double>(batch * steps) / seconds_since(start);
  }

  void forget_cache() { cache_.reset(); }

 private:
  static constexpr std::int64_t kWarmSteps = 1;

  const ModelConfig& config() const { return model_.config(); }
  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  void fill(KvCache& cache, std::int64_t batch, std::int64_t tokens, std::vector<float>& logits) {
    const std::int64_t chunk = std::max<std::int64_t>(1, kPrefillChunk / batch);
    std::vector<float> hidden;
    for (std::int64_t done = 0; done < tokens; done += chunk) {
      const std::int64_t length = std::min(chunk, tokens - done);
      const auto ids = random_tokens(batch * length, config().vocab_size, random_);
      hidden = model_.hidden_states({ids, batch, length}, &cache);
    }
    model_.logits(std::span(hidden).last(static_cast<std::size_t>(config().hidden_size)), logits);
  }

  void step(std::int64_t batch) {
    const auto ids = random_tokens(batch, config().vocab_size, random_);
    const auto hidden = model_.hidden_states({ids, batch, 1}, cache_.get());
    model_.logits(hidden, logits_);
  }

  CpuModel& model_;
  const BenchOptions& options_;
  Random random_;
  std::unique_ptr<KvCache> cache_;
  std::vector<float> logits_;
};

void check(const CpuModel& model, const BenchOptions& options) {
  const auto require = [](bool good, const char* option) {
    if (!good) throw usage_error("a number that makes no sense", option, "give positive numbers");
  };
  const auto least = [](const auto& list, std::int64_t minimum) {
    return std::all_of(list.begin(), list.end(), [minimum](std::int64_t value) { return value >= minimum; });
  };
  require(least(options.prompt_tokens, 0), "--prompt-tokens");
  require(options.gen_tokens >= 0, "--gen-tokens");
  require(!options.batch.empty() && least(options.batch, 1), "--batch");
  require(!options.context.empty() && least(options.context, 0), "--context");
  require(!options.threads.empty() && least(options.threads, 0), "--threads");
  require(options.repeats >= 1, "--repeats");
  for (const std::int64_t context : options.context) {
    if (context + options.gen_tokens > model.config().max_position_embeddings) {
      throw usage_error(fmt::format("a context of {} exceeds the model's {} positions", context,
                                    model.config().max_position_embeddings),
                        "--context", "use a shorter one");
    }
  }
}

/// Bytes that one token reads: its share of the weights, and its sequence's keys and values.
double bytes_per_token(const CpuModel& model, const BenchResult& result) {
  const auto weights = static_cast<double>(model.bytes_per_token());
  const auto per_position = static_cast<double>(model.block_bytes(model.kv_cache_type())) /
                            static_cast<double>(model.block_size());
  if (result.test == "prefill") return weights / static_cast<double>(std::min(result.tokens, kPrefillChunk));
  const double positions = static_cast<double>(result.context) + static_cast<double>(result.tokens) / 2;
  return weights / static_cast<double>(result.batch) + per_position * positions;
}

/// On and off by turns, so that a change of the machine's mood meets both.
template <class Run>
void measure(CpuModel& model, const BenchOptions& options, bool has_compensators, BenchResult shape, Run run,
             BenchReport& report) {
  std::vector<BenchResult> results;
  for (const bool on : {true, false}) {
    if (on ? !(has_compensators && options.compensators_on) : has_compensators && !options.compensators_off) continue;
    results.push_back(shape);
    results.back().compensators = on;
  }
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (std::size_t i = 0; i < results.size(); ++i) {
      BenchResult& result = results[repeat % 2 == 0 ? i : results.size() - 1 - i];
      model.set_compensators(result.compensators);
      result.rates.push_back(run());
      result.bytes_per_token = bytes_per_token(model, result);
      if (interrupted()) throw Error(ExitCode::interrupted, "interrupted", "bench", "");
    }
  }
  for (BenchResult& result : results) {
    result.roofline_fraction = result.median() * result.bytes_per_token / (1e9 * report.probe_gb_s.at(result.threads));
    report.results.push_back(std::move(result));
  }
}

}  // namespace

double BenchResult::median() const { return spear::median(rates); }

BenchReport run_bench(CpuModel& model, const BenchOptions& options,
                      const std::function<void(const std::string&)>& progress) {
  check(model, options);
  const auto say = [&](const std::string& text) {
    if (progress) progress(text);
  };
  BenchReport report;
  const bool has_compensators = compensator_bytes(model.weights()) > 0;
  for (const int wanted : options.threads) {
    model.set_threads(wanted);
    const int threads = model.threads();
    say(fmt::format("bandwidth probe, {} threads", threads));
    report.probe_gb_s[threads] = probe_read_bandwidth(threads);
    Bench bench(model, options);
    for (const std::int64_t tokens : options.prompt_tokens) {
      if (tokens == 0) continue;
      say(fmt::format("prefill of {}, {} threads", tokens, threads));
      bench.prefill(std::min<std::int64_t>(tokens, 64));  // pages, caches, buffers
      BenchResult result{"prefill", threads, 1, tokens, 0, false, {}, 0, 0};
      measure(
          model, options, has_compensators, result, [&] { return bench.prefill(tokens); }, report);
    }
    if (options.gen_tokens == 0) continue;
    for (const std::int64_t batch : options.batch) {
      for (const std::int64_t context : options.context) {
        say(fmt::format("decode, batch {}, context {}, {} threads", batch, context, threads));
        const std::int64_t runs = 2 * options.repeats + 1;
        bench.decode(batch, context, runs);
        BenchResult result{"decode", threads, batch, options.gen_tokens, context, false, {}, 0, 0};
        measure(
            model, options, has_compensators, result, [&] { return bench.decode(batch, context, runs); }, report);
        bench.forget_cache();
      }
    }
  }
  return report;
}

}  // namespace spear
