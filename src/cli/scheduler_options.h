// Options of the scheduler, and the latency table that it needs.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "cli/model_options.h"
#include "engine/scheduler/latency_model.h"
#include "engine/scheduler/scheduler.h"

namespace spear::cli {

struct SchedulingOptions {
  std::string latency_table = "auto";  ///< a file; auto: what lies with the model; none
  std::string batching = "mixed";
  double margin = kFirstMargin;
  SchedulerOptions scheduler;
};

void add_scheduling_options(CLI::App& command, SchedulingOptions& options);

/// What steps take on this machine, or nothing (and a fixed number of tokens per step it is): said in the log. Also
/// gives the model the order in which compensators are worth keeping. Throws Error(usage) when an option needs a table
/// and there is none, Error(bad_input) for a damaged one.
std::optional<LatencyModel> prepare_scheduler(SchedulingOptions& options, CpuModel& model,
                                              const ModelOptions& model_options);

}  // namespace spear::cli
