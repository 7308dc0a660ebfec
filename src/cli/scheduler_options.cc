#include "cli/scheduler_options.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/profile.h"

namespace spear::cli {

void add_scheduling_options(CLI::App& command, SchedulingOptions& options) {
  SchedulerOptions& scheduler = options.scheduler;
  command
      .add_option("--latency-table", options.latency_table,
                  "What steps take, from `spear profile`: a file, auto (what lies with the model) or none")
      ->type_name("FILE|auto|none")
      ->capture_default_str()
      ->group("Scheduler");
  command.add_option("--batching", options.batching, "Steps hold decodes and prompts (mixed) or one of them")
      ->check(CLI::IsMember({"mixed", "exclusive"}).description(""))
      ->type_name("mixed|exclusive")
      ->capture_default_str()
      ->group("Scheduler");
  command
      .add_option("--slo-margin", options.margin,
                  "Predicted times are multiplied by it at first; later by what keeps 99 % of the steps in time")
      ->check(CLI::Range(1.0, 10.0).description(""))
      ->capture_default_str()
      ->group("Scheduler");
  command
      .add_flag("--refuse-late", scheduler.refuse_unattainable,
                "Refuse requests whose first token cannot come in time; default: they wait")
      ->group("Scheduler");
  command
      .add_flag("--shed-compensators", scheduler.shed_compensators, "Drop compensators before an objective is missed")
      ->group("Scheduler");
  command.add_option("--shed-floor", scheduler.shed_floor, "Part of the compensators that is always kept")
      ->check(CLI::Range(0.0, 1.0).description(""))
      ->capture_default_str()
      ->group("Scheduler");
}

std::optional<LatencyModel> prepare_scheduler(SchedulingOptions& options, CpuModel& model,
                                              const ModelOptions& model_options) {
  options.scheduler.exclusive = options.batching == "exclusive";
  order_compensators(model, model_options.model);
  std::optional<LatencyTable> table;
  const LatencyKey key = latency_key(model, model_options.kv_cache_type, model_options.head_type, SPEAR_VERSION);
  if (options.latency_table == "auto") {
    table = find_latency_table(model_options.model, key);
  } else if (options.latency_table != "none") {
    table = read_latency_table(options.latency_table);
    if (!(table->key == key)) {
      log::warn("{} was measured on another machine, model or build: predictions follow what steps take",
                options.latency_table);
    }
  }
  if (table) {
    model.set_fusion_table(FusionTable(table->kernels));
    log::info("scheduler: objectives are kept by a latency table of {}, {:.0f} % off at p90", table->created,
              100 * table->error_quantile(0.9));
    return LatencyModel(std::move(*table), true, options.margin);
  }
  if (options.scheduler.shed_compensators || options.scheduler.refuse_unattainable) {
    throw usage_error("there is no latency table for this model on this machine",
                      options.scheduler.shed_compensators ? "--shed-compensators" : "--refuse-late",
                      fmt::format("measure one: spear profile --model {}", shell_quoted(model_options.model)));
  }
  log::info("scheduler: a fixed number of tokens per step; with a latency table (spear profile) it keeps objectives");
  return {};
}

}  // namespace spear::cli
