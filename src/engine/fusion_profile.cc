#include "engine/fusion_profile.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "base/error.h"
#include "base/interrupt.h"
#include "engine/median.h"
#include "engine/step_timer.h"
#include "model/weights.h"
#include "ops/cpu/fused_linear.h"

namespace spear {
namespace {

constexpr std::size_t kFewestRounds = 3, kMostRounds = 200;
constexpr std::size_t kPlain = kFusions.size();  // index of the measurements without compensators

using Clock = std::chrono::steady_clock;

/// Microseconds of an operation of a shape, one per round: by way of fusing, then without compensators.
using Rounds = std::array<std::map<FusionShape, std::vector<double>>, kFusions.size() + 1>;

class FusionProfiler {
 public:
  FusionProfiler(CpuModel& model, const ProfileOptions& options)
      : model_(model),
        max_decodes_(options.max_decodes),
        timer_(model, options.kv_cache_type, {options.max_decodes, options.max_chunk, 0}, options.seed) {}

  std::vector<FusionTiming> timings(std::int64_t tokens, double seconds) {
    Rounds rounds;
    std::map<FusionShape, std::int64_t> counts;
    const auto start = Clock::now();
    const auto spent = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    measure(tokens, kPlain);  // warms up
    for (std::size_t round = 0; round < kFewestRounds || (round < kMostRounds && spent() < seconds); ++round) {
      if (interrupted()) throw Error(ExitCode::interrupted, "interrupted", "profile", "");
      for (std::size_t k = 0; k <= kPlain; ++k) {
        const std::size_t way = round % 2 == 0 ? k : kPlain - k;  // forth and back again: what drifts cancels
        for (const auto& [shape, sum] : measure(tokens, way)) {
          rounds[way][shape].push_back(sum.us / static_cast<double>(sum.count));
          counts[shape] = sum.count;
        }
      }
    }
    std::vector<FusionTiming> out;
    for (const auto& [shape, times] : rounds[0]) {
      if (shape.ranks == 0) continue;
      const auto& plain = rounds[kPlain].at({shape.rows, shape.cols, 0});
      FusionTiming timing{shape, counts.at(shape), tokens, median(plain), {}};
      for (std::size_t way = 0; way < kFusions.size(); ++way) {
        std::vector<double> added = rounds[way].at(shape);  // in the same round, so that the machine's moods cancel
        for (std::size_t i = 0; i < added.size(); ++i) added[i] -= plain[i];
        timing.fused_us[way] = std::max(0.0, timing.plain_us + median(std::move(added)));
      }
      out.push_back(timing);
    }
    return out;
  }

 private:
  std::map<FusionShape, FusionProbe::Sum> measure(std::int64_t tokens, std::size_t way) {
    FusionProbe probe;
    if (way < kPlain) probe.fusion = kFusions[way];
    TimedStep step;
    (tokens <= max_decodes_ ? step.decodes : step.prefill) = tokens;
    step.density = way < kPlain ? 1 : 0;
    model_.set_fusion_probe(&probe);
    try {
      timer_.run(step);
    } catch (...) {
      model_.set_fusion_probe(nullptr);
      throw;
    }
    model_.set_fusion_probe(nullptr);
    return std::move(probe.sums);
  }

  CpuModel& model_;
  std::int64_t max_decodes_;
  StepTimer timer_;
};

}  // namespace

std::vector<FusionTiming> profile_fusion(CpuModel& model, const ProfileOptions& options, double seconds) {
  std::vector<FusionTiming> out;
  if (compensator_bytes(model.weights()) == 0) return out;
  FusionProfiler profiler(model, options);
  const std::int64_t most = std::max(options.max_decodes, options.max_chunk);
  for (const std::int64_t tokens : FusionTable::kTokens) {
    if (tokens > most) continue;
    const auto timings = profiler.timings(tokens, seconds / FusionTable::kTokens.size());
    out.insert(out.end(), timings.begin(), timings.end());
  }
  model.set_compensator_density(1);
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.shape < b.shape; });
  return out;
}

double added_us(std::span<const FusionTiming> timings, std::int64_t tokens, Fusion fusion) {
  double us = 0;
  for (const FusionTiming& timing : timings) {
    if (timing.tokens != tokens) continue;
    us += static_cast<double>(timing.count) * (timing.us(fusion == Fusion::automatic ? timing.best() : fusion) - timing.plain_us);
  }
  return us;
}

}  // namespace spear
