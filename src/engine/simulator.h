// A discrete-event simulation of the engine: the real scheduler, a latency table instead of a model.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "engine/simulated_load.h"

namespace spear {

struct SimulationOptions {
  SchedulerOptions scheduler;
  std::int64_t static_chunk = 0;  ///< tokens of a step by a fixed budget; 0: as objectives allow
  std::int64_t num_blocks = 1024, block_size = 32;
  double noise = 0;  ///< a step takes its predicted time times exp(noise x normal)
  std::uint64_t seed = 1;
  bool learn = false;            ///< whether the scheduler's latency model follows the noise
  double margin = kFirstMargin;  ///< of the scheduler's predictions; with `learn`, what it starts with
};

struct Percentiles {
  double mean = 0, median = 0, p90 = 0, p99 = 0, most = 0;
};

/// Milliseconds where nothing else is said. Refused requests are offered, but not completed.
struct SimulationResult {
  std::string policy;
  std::int64_t offered = 0, completed = 0, refused = 0, preemptions = 0, steps = 0, shed_steps = 0;
  std::int64_t input_tokens = 0, output_tokens = 0;
  double duration = 0;    ///< seconds
  double attainment = 0;  ///< of all offered: first token in time, and at most 1 % of the gaps too long
  double goodput = 0;     ///< requests per second that meet ttft and, on average, itl: as `vllm bench serve` counts
  double itl_late = 0;    ///< part of all gaps that were too long
  Percentiles ttft, tpot, itl, e2el;
  double decision_us = 0;  ///< wall-clock time of one decision, on average
  std::int64_t most_running = 0;
};

/// Before each step is taken: the plan, and the blocks that are free behind it.
using SimulationObserver = std::function<void(const Scheduler&, const StepPlan&, std::int64_t free_blocks, double now)>;

/// Throws Error(usage) when a request does not fit into the blocks alone. The same arguments give the same result.
SimulationResult simulate(const LatencyTable& table, std::span<const SimulatedRequest> load,
                          const SimulationOptions& options, const SimulationObserver& observer = {});

/// Members are named as `vllm bench serve` names them where it has them.
nlohmann::json to_json(const SimulationResult& result);

}  // namespace spear
