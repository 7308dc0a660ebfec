#include "engine/profile.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <numeric>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/random.h"
#include "base/resources.h"
#include "engine/fusion_profile.h"
#include "engine/median.h"
#include "engine/scheduler/compensator_order.h"
#include "engine/step_timer.h"

namespace spear {
namespace {

constexpr std::size_t kEnough = 40;             // measurements of a step
constexpr double kCompensatorShare = 0.3, kKernelShare = 0.2;  // of the time

/// A step to measure, and what was measured.
struct Step : TimedStep {
  std::vector<double> ms = {};
  double spent = 0;

  double median() const { return spear::median(ms); }
};

std::vector<double> nodes_up_to(std::initializer_list<std::int64_t> nodes, std::int64_t most) {
  std::vector<double> out;
  for (const std::int64_t node : nodes) {
    if (node < most) out.push_back(static_cast<double>(node));
  }
  out.push_back(static_cast<double>(most));
  return out;
}

class Profiler {
 public:
  Profiler(CpuModel& model, const ProfileOptions& options)
      : model_(model), options_(options), timer_(model, options.kv_cache_type, {options.max_decodes, options.max_chunk, options.max_context}, options.seed) {}

  std::int64_t max_context() const { return timer_.max_context(); }
  Random& random() { return timer_.random(); }

  /// Every step gets about the same time: short ones, which jitter most, are measured most often.
  void measure(std::span<Step> steps, double seconds) {
    double spent = 0;
    for (Step& step : steps) timer_.run(step);  // pages, caches, buffers
    while (true) {
      if (interrupted()) throw Error(ExitCode::interrupted, "interrupted", "profile", "");
      Step* next = nullptr;
      const bool over = spent > seconds;
      for (Step& step : steps) {
        if (over ? step.ms.size() >= 2 : step.ms.size() >= kEnough) continue;
        if (next == nullptr || step.spent < next->spent) next = &step;
      }
      if (next == nullptr) return;
      next->ms.push_back(timer_.run(*next));
      next->spent += next->ms.back() * 1e-3;
      spent += next->ms.back() * 1e-3;
    }
  }

  /// What `densities`, the first of them none, add to each step of `rows`. A part of the compensators adds its share of their
  /// bytes, so that all densities tell about one number per row count, and that number grows with the rows.
  LatencyGrid compensators(const std::vector<double>& densities, const std::vector<double>& rows, double seconds) {
    std::vector<double> shares;
    for (const double density : densities) {
      model_.set_compensator_density(density);
      shares.push_back(static_cast<double>(model_.bytes_per_token()));
    }
    const double none = shares.front(), all = shares.back() - none;
    for (double& share : shares) share = (share - none) / all;
    std::vector<Estimate> estimates;
    for (const double count : rows) {
      estimates.push_back(added_by_all(static_cast<std::int64_t>(count), densities, shares, seconds / static_cast<double>(rows.size())));
    }
    const std::vector<double> added = nearest_increasing(estimates);
    LatencyGrid grid{densities, rows, {}};
    for (const double share : shares) {
      for (const double ms : added) grid.value.push_back(std::max(0.0, ms) * share);
    }
    return grid;
  }

 private:
  /// What all compensators add to a step of `rows`: densities by turns, so that a change of the machine's mood meets all.
  Estimate added_by_all(std::int64_t rows, const std::vector<double>& densities, const std::vector<double>& shares, double seconds) {
    Step step;
    (rows <= options_.max_decodes ? step.decodes : step.prefill) = rows;
    std::vector<double> rounds;
    const double squares = std::inner_product(shares.begin(), shares.end(), shares.begin(), 0.0);
    double spent = 0;
    timer_.run(step);
    while (rounds.size() < 3 || (spent < seconds && rounds.size() < 400)) {
      if (interrupted()) throw Error(ExitCode::interrupted, "interrupted", "profile", "");
      double none = 0, sum = 0;
      for (std::size_t k = 0; k < densities.size(); ++k) {
        // Forth and back again: what drifts cancels.
        const std::size_t i = rounds.size() % 2 == 0 ? k : (densities.size() - k) % densities.size();
        step.density = densities[i];
        const double ms = timer_.run(step);
        spent += ms * 1e-3;
        if (i == 0) none = ms;
        sum += shares[i] * (ms - none);
      }
      rounds.push_back(sum / squares);  // the slope through 0 that fits the round best
    }
    const double middle = median(rounds);
    double spread = 0;
    for (const double each : rounds) spread += std::fabs(each - middle);
    spread = std::max(spread / static_cast<double>(rounds.size()), 1e-6);
    return {middle, static_cast<double>(rounds.size()) / (spread * spread)};
  }

  CpuModel& model_;
  const ProfileOptions& options_;
  StepTimer timer_;
};

LatencyGrid grid_of(std::vector<double> x, std::vector<double> y) {
  const std::size_t size = x.size() * y.size();
  return {std::move(x), std::move(y), std::vector<double>(size, 0.0)};
}

std::vector<Step> random_steps(Profiler& profiler, const ProfileOptions& options, bool has_compensators) {
  std::vector<Step> steps;
  Random& random = profiler.random();
  const auto up_to = [&](std::int64_t most) {
    return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(most) + 1));
  };
  for (std::int64_t i = 0; i < options.held_out; ++i) {
    Step step;
    if (i % 3 != 0) step.prefill = 1 + up_to(options.max_chunk - 1);
    if (i % 3 != 1 || step.prefill == 0) step.decodes = 1 + up_to(options.max_decodes - 1);
    step.context = std::max<std::int64_t>(1, up_to(profiler.max_context()));
    step.prefill_context = up_to(profiler.max_context());
    if (has_compensators && i % 2 == 1) step.density = random.uniform();
    steps.push_back(std::move(step));
  }
  return steps;
}

}  // namespace

LatencyKey latency_key(const CpuModel& model, KvCacheType kv_cache_type, const std::string& head_type,
                       const std::string& build) {
  const ModelConfig& c = model.config();
  LatencyKey key;
  key.machine = machine_description();
  key.isa = model.isa();
  key.build = build;
  key.kv_cache_type = name(kv_cache_type);
  const char* const activations[] = {"a32", "a16", "a8"};
  key.activations = activations[static_cast<int>(model.activations())];
  key.head_type = head_type;
  key.model = fmt::format("{} layers, {}/{}, {}/{} heads of {}, vocabulary {}, {} bytes of compensators",
                          c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads,
                          c.num_key_value_heads, c.head_dim, c.vocab_size, compensator_bytes(model.weights()));
  key.threads = model.threads();
  return key;
}

LatencyTable profile(CpuModel& model, const ProfileOptions& options,
                     const std::function<void(const std::string&)>& progress) {
  if (options.max_decodes < 1 || options.max_chunk < 1 || options.max_context < 0 || !(options.seconds > 0) ||
      options.held_out < 0 || options.max_chunk >= model.config().max_position_embeddings) {
    throw usage_error("a number that makes no sense", "profile", "give positive numbers within the model's positions");
  }
  const auto say = [&](const std::string& text) {
    if (progress) progress(text);
  };
  const bool has_compensators = compensator_bytes(model.weights()) > 0;
  LatencyTable table;
  if (has_compensators) {
    say("kernels: each way of fusing a compensator by turns");
    table.kernels = profile_fusion(model, options, kKernelShare * options.seconds);
    model.set_fusion_table(FusionTable(table.kernels));
  }
  Profiler profiler(model, options);
  table.created = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  table.base = grid_of(nodes_up_to({0, 1, 2, 4, 8, 16}, options.max_decodes),
                       nodes_up_to({0, 1, 8, 16, 32, 64, 128, 256}, options.max_chunk));
  const auto decodes = nodes_up_to({1, 4, 16}, options.max_decodes);
  const auto chunks = nodes_up_to({1, 32, 128}, options.max_chunk);
  const double context = static_cast<double>(profiler.max_context());
  table.decode_context =
      grid_of(decodes, nodes_up_to({TimedStep::kShortContext, 256, 1024}, std::max(profiler.max_context(), TimedStep::kShortContext + 1)));
  table.prefill_context =
      grid_of(chunks, context > 0 ? nodes_up_to({0, 512}, profiler.max_context()) : std::vector<double>{0});

  // All steps in one list, so that time is shared among them.
  std::vector<Step> steps;
  const auto add = [&](std::int64_t b, std::int64_t c, std::int64_t p, std::int64_t k) {
    Step step;
    step.decodes = b;
    step.context = c;
    step.prefill = p;
    step.prefill_context = k;
    steps.push_back(std::move(step));
  };
  const auto integer = [](double value) { return static_cast<std::int64_t>(value); };
  for (const double b : table.base.x) {
    for (const double p : table.base.y) {
      if (b + p > 0) add(integer(b), TimedStep::kShortContext, integer(p), 0);
    }
  }
  for (const double b : table.decode_context.x) {
    for (const double c : table.decode_context.y) add(integer(b), integer(c), 0, 0);
  }
  for (const double p : table.prefill_context.x) {
    for (const double k : table.prefill_context.y) add(0, 0, integer(p), integer(k));
  }
  const std::size_t nodes = steps.size();
  for (Step& step : random_steps(profiler, options, has_compensators)) steps.push_back(std::move(step));
  const double compensator_seconds = has_compensators ? kCompensatorShare * options.seconds : 0.0;
  say(fmt::format("{} steps for the table, {} to check it", nodes, steps.size() - nodes));
  const double kernel_seconds = has_compensators ? kKernelShare * options.seconds : 0.0;
  profiler.measure(steps, options.seconds - compensator_seconds - kernel_seconds);

  std::size_t i = 0;
  for (double& value : table.base.value) value = &value == table.base.value.data() ? 0.0 : steps[i++].median();
  table.base.make_monotone();
  const auto take_excess = [&](LatencyGrid& grid) {
    for (std::size_t x = 0; x < grid.x.size(); ++x) {
      const double shortest = steps[i].median();
      for (std::size_t y = 0; y < grid.y.size(); ++y) grid.node(x, y) = std::max(0.0, steps[i++].median() - shortest);
    }
    grid.make_monotone();
  };
  take_excess(table.decode_context);
  take_excess(table.prefill_context);

  if (has_compensators) {
    say("compensators: on, off, and parts of them by turns");
    table.compensators = profiler.compensators({0, 0.25, 0.5, 1}, {1, 8, 32, 128}, compensator_seconds);
  } else {
    table.compensators = {{0, 1}, {1}, {0, 0}};
  }
  model.set_compensator_density(1);
  table.module_us = compensator_shares(model.weights());
  double total = 0;
  for (const double share : table.module_us) total += share;
  for (double& share : table.module_us) share *= total > 0 ? 1e3 * table.compensators.at(1, 1) / total : 0.0;
  for (i = nodes; i < steps.size(); ++i) {
    table.held_out.push_back({steps[i].shape(), steps[i].median(), table.milliseconds(steps[i].shape())});
  }
  return table;
}

}  // namespace spear
