#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "engine/simulator.h"

namespace spear::cli {
namespace {

struct Options {
  std::string table, trace, batching = "mixed";
  std::vector<std::string> policies = {"slo", "8", "16", "32", "64", "128", "256", "512"};
  double scale = 1;
  std::int64_t kv_tokens = 65536;
  LoadOptions load;
  SimulationOptions simulation;
};

/// "slo" is 0; a number is a fixed budget of tokens per step.
std::int64_t parse_policy(const std::string& text) {
  std::int64_t chunk = 0;
  if (text == "slo") return 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), chunk);
  if (error != std::errc() || end != text.data() + text.size() || chunk < 1 || chunk > 1'000'000) {
    throw usage_error(fmt::format("unknown policy '{}'", text), "--policies", "use slo, or tokens per step as in 128");
  }
  return chunk;
}

/// Of the fixed budgets, the one that attained most, or with equals the one whose first tokens came soonest.
const SimulationResult* best_static(const std::vector<SimulationResult>& results) {
  const SimulationResult* best = nullptr;
  for (const SimulationResult& r : results) {
    if (r.policy == "slo") continue;
    if (best == nullptr || r.attainment > best->attainment ||
        (r.attainment == best->attainment && r.ttft.p90 < best->ttft.p90)) {
      best = &r;
    }
  }
  return best;
}

void print_results(const std::vector<SimulationResult>& results) {
  fmt::print("{:>6} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>6}\n", "policy", "attainment",
             "goodput/s", "TTFT p50", "p90", "ITL p50", "p99", "late gaps", "tok/s", "refused", "shed");
  for (const SimulationResult& r : results) {
    fmt::print("{:>6} {:>8.1f} % {:>9.2f} {:>9.0f} {:>9.0f} {:>9.1f} {:>9.1f} {:>7.2f} % {:>8.0f} {:>7} {:>4.0f} %\n",
               r.policy, 100 * r.attainment, r.goodput, r.ttft.median, r.ttft.p90, r.itl.median, r.itl.p99,
               100 * r.itl_late, static_cast<double>(r.output_tokens) / std::max(r.duration, 1e-9), r.refused,
               100.0 * static_cast<double>(r.shed_steps) / static_cast<double>(std::max<std::int64_t>(r.steps, 1)));
  }
  if (const SimulationResult* best = best_static(results)) {
    fmt::print("best fixed budget with hindsight: {}\n", best->policy);
  }
}

int run(const CommonOptions& common, Options options) {
  apply(common);
  if (!(options.scale > 0 && options.scale < 1e6)) throw usage_error("no factor", "--scale", "give a positive number");
  const LatencyTable table = read_latency_table(options.table).scaled(options.scale);
  options.simulation.num_blocks = std::max<std::int64_t>(options.kv_tokens / options.simulation.block_size, 1);
  options.simulation.scheduler.exclusive = options.batching == "exclusive";
  options.simulation.seed = options.load.seed;
  const auto load = options.trace.empty() ? make_load(options.load) : read_load(options.trace, options.load);
  std::vector<SimulationResult> results;
  for (const std::string& policy : options.policies) {
    options.simulation.static_chunk = parse_policy(policy);
    log::info("{} requests, policy {}", load.size(), policy);
    results.push_back(simulate(table, load, options.simulation));
    results.back().policy = policy;
  }
  if (!common.json) {
    print_results(results);
    return 0;
  }
  nlohmann::json json = {{"schema", "spear.simulate/1"},
                         {"table", options.table},
                         {"request_rate", static_cast<double>(load.size()) / std::max(load.back().arrival, 1e-9)},
                         {"num_prompts", load.size()},
                         {"slo", {{"ttft_ms", options.load.slo.ttft_ms}, {"itl_ms", options.load.slo.itl_ms}}},
                         {"results", nlohmann::json::array()}};
  for (const SimulationResult& result : results) json["results"].push_back(to_json(result));
  if (const SimulationResult* best = best_static(results)) json["best_static"] = best->policy;
  print_json(json);
  return 0;
}

}  // namespace

void add_simulate(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command =
      line.add("simulate", "Try schedulers and loads on a latency table, without a model",
               {"spear simulate --table recovered/latency-0123456789ab.json --rate 2 --ttft-ms 2000 --itl-ms 60",
                "spear simulate --table table.json --scale 0.001 --rate 2000 --requests 20000 --max-num-seqs 4096 "
                "--kv-tokens 8000000 --policies slo,512 --json"},
               [=] { return run(*common, *options); });
  command.add_option("--table", options->table, "Latency table, as `spear profile` writes it")
      ->type_name("FILE")
      ->required();
  command.add_option("--scale", options->scale, "Every step takes this times as long")->capture_default_str();
  command.add_option("--policies", options->policies, "slo, and numbers of tokens per step")
      ->delimiter(',')
      ->type_name("LIST")
      ->capture_default_str();
  LoadOptions& load = options->load;
  command.add_option("--rate", load.rate, "Requests per second, Poisson")->capture_default_str()->group("Load");
  command.add_option("--requests", load.count, "How many")->capture_default_str()->group("Load");
  command.add_option("--lengths", load.lengths, "sharegpt, or PROMPT:OUTPUT tokens")
      ->capture_default_str()
      ->group("Load");
  command.add_option("--long-fraction", load.long_fraction, "Part of the prompts that is long")
      ->capture_default_str()
      ->group("Load");
  command.add_option("--long-prompt", load.long_prompt, "Tokens of those")->capture_default_str()->group("Load");
  command.add_option("--max-length", load.max_length, "Tokens of prompt and output together")
      ->capture_default_str()
      ->group("Load");
  command
      .add_option("--trace", options->trace,
                  "Requests from a file, one JSON object per line: arrival_s, "
                  "prompt_tokens, output_tokens, priority, ttft_ms, itl_ms")
      ->type_name("FILE")
      ->group("Load");
  command.add_option("--ttft-ms", load.slo.ttft_ms, "Objective for the first token; 0: none")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber)
      ->group("Load");
  command.add_option("--itl-ms", load.slo.itl_ms, "Objective between two tokens; 0: none")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber)
      ->group("Load");
  command.add_option("--seed", load.seed, "")->capture_default_str()->group("Load");
  SchedulerOptions& scheduler = options->simulation.scheduler;
  command.add_option("--max-num-seqs", scheduler.max_num_seqs, "Requests that run at the same time")
      ->capture_default_str()
      ->group("Scheduler");
  command.add_option("--kv-tokens", options->kv_tokens, "Tokens that the KV cache holds")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("Scheduler");
  command.add_option("--max-num-batched-tokens", scheduler.max_batched_tokens, "Tokens of a step, for slo")
      ->capture_default_str()
      ->group("Scheduler");
  command.add_option("--batching", options->batching, "Steps of slo hold decodes and prompts (mixed) or one of them")
      ->check(CLI::IsMember({"mixed", "exclusive"}).description(""))
      ->type_name("mixed|exclusive")
      ->capture_default_str()
      ->group("Scheduler");
  command
      .add_option("--margin", options->simulation.margin,
                  "Predicted times are multiplied by it (with --learn: at first)")
      ->capture_default_str()
      ->group("Scheduler");
  command.add_flag("--refuse", scheduler.refuse_unattainable, "Refuse requests whose first token cannot come in time")
      ->group("Scheduler");
  command
      .add_flag("--shed-compensators", scheduler.shed_compensators, "Drop compensators before objectives are missed")
      ->group("Scheduler");
  command.add_option("--shed-floor", scheduler.shed_floor, "Down to this part of them")
      ->capture_default_str()
      ->group("Scheduler");
  command.add_option("--noise", options->simulation.noise, "Steps take exp(noise x normal) times the predicted time")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 2.0).description(""))
      ->group("Scheduler");
  command.add_flag("--learn", options->simulation.learn, "The scheduler's predictions follow what steps took")
      ->group("Scheduler");
  add_common_options(command, common);
}

}  // namespace spear::cli
