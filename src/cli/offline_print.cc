#include "cli/offline_print.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/progress.h"
#include "io/model_reader.h"
#include "recover/machine_speed.h"
#include "torch/torch_tensors.h"

namespace spear::cli {
namespace {

std::string interval(const nlohmann::json& row, const char* field, int digits, double scale = 1) {
  const auto found = row.find(field);
  if (found == row.end() || found->is_null() || (*found)["value"].is_null()) return "-";
  const auto number = [&](const char* part) {
    return (*found)[part].is_null() ? std::string("-") : fmt::format("{:.{}f}", scale * (*found)[part].get<double>(), digits);
  };
  return fmt::format("{} [{}, {}]", number("value"), number("low"), number("high"));
}

}  // namespace

void print_bytes(const nlohmann::json& manifest) {
  const auto& bytes = manifest.at("bytes");
  fmt::print("base {}, compensators {} = {:.3f} % of it; {:.3f} bits per linear weight\n", format_bytes(bytes.at("base")),
             format_bytes(bytes.at("compensators")), 100 * bytes.at("fraction").get<double>(),
             bytes.at("bits_per_linear_weight").get<double>());
}

void print_results(const nlohmann::json& manifest) {
  const auto& results = manifest.at("results");
  fmt::print("{}: {} windows of {} tokens, 95 % intervals over windows\n", results["text"]["name"].get<std::string>(),
             results["text"]["windows"].get<std::int64_t>(), results["text"]["context"].get<std::int64_t>());
  fmt::print("{:<28} {:>24} {:>26} {:>24} {:>10}\n", "", "perplexity", "KL (nats/token)", "top-1 agreement %", "bytes");
  for (const auto& row : results["rows"]) {
    fmt::print("{:<28} {:>24} {:>26} {:>24} {:>10}\n", row["label"].get<std::string>(), interval(row, "perplexity", 2),
               interval(row, "kl", 4), interval(row, "top1_agreement", 1, 100), format_bytes(row["bytes"].get<double>()));
  }
  for (const auto& [name, gap] : results["gap"].items()) {
    fmt::print("gap to {} recovered: perplexity {} %, log-perplexity {} %, KL {} %\n", name, interval(gap, "perplexity", 1, 100),
               interval(gap, "log_perplexity", 1, 100), interval(gap, "kl", 1, 100));
  }
  print_bytes(manifest);
  const auto placement = manifest.find("placement");
  if (placement == manifest.end() || !placement->contains("without_latency")) return;
  const auto& without = placement->at("without_latency");
  const auto sites = [](const nlohmann::json& ranks) { return std::count_if(ranks.begin(), ranks.end(), [](const auto& rank) { return rank > 0; }); };
  fmt::print("placed by the latency table: {} modules, {:+.1f} us per decoded token; without it {}, {:+.1f} us\n", sites(placement->at("ranks")),
             placement->at("added_us").get<double>(), sites(without.at("ranks")), without.at("added_us").get<double>());
}

int print_plan(const RecoverOptions& options, PlannedCommand command, const CommonOptions& common) {
  const ModelConfig config = read_model_config(options.reference);
  const torch::ScalarType compute = compute_type(device_named(options.device));
  const Needs needs = estimate_needs(config, options.recipe, command, torch::elementSize(compute),
                                     static_cast<std::int64_t>(element_bytes(weights_type(options.reference))));
  const PlannedBytes bytes = planned_bytes(config, options.recipe);
  const double gflops = measured_gflops(compute);
  const ProductSpeed speed = {gflops, compute == torch::kFloat32 ? gflops : measured_gflops(torch::kFloat32),
                              static_cast<std::int64_t>(torch::elementSize(compute))};
  const auto stages = planned_stages(config, options.recipe, command, options.text.empty() ? 0 : options.windows * options.context, speed);
  double seconds = 0;
  for (const PlannedStage& stage : stages) seconds += stage.seconds;
  if (common.json) {
    nlohmann::json plan = {{"schema", "spear.plan/1"},
                           {"recipe", to_json(options.recipe)},
                           {"memory_bytes", needs.memory},
                           {"mapped_bytes", needs.mapped},
                           {"disk_bytes", needs.disk},
                           {"bytes", {{"reference", bytes.reference}, {"result", bytes.quantized}, {"base", bytes.budget_base},
                                      {"compensators", bytes.compensators}}},
                           {"seconds", seconds},
                           {"gflops", gflops},
                           {"float32_gflops", speed.float32_gflops},
                           {"compute", name(compute)},
                           {"stages", nlohmann::json::array()}};
    for (const PlannedStage& stage : stages) plan["stages"].push_back({{"name", stage.name}, {"seconds", stage.seconds}});
    print_json(plan);
    return 0;
  }
  const auto size = [](std::int64_t count) { return format_bytes(static_cast<double>(count)); };
  fmt::print("preset {}, {}, {}, budget {:.2f} % of the model's bytes\n", options.recipe.preset, to_string(options.recipe.scheme),
             options.recipe.rotation == Rotation::stream ? "stream rotated (SPEAR alone runs the result)" : "stream as it is",
             100 * options.recipe.budget);
  for (const PlannedStage& stage : stages) {
    fmt::print("  {:<30} {:<46} about {}\n", stage.name, stage.what, format_duration(stage.seconds));
  }
  fmt::print("about {} on this machine's CPU ({} products at {:.0f} GFLOP/s, float32 at {:.0f}); far less on a GPU\n",
             format_duration(seconds), name(compute), gflops, speed.float32_gflops);
  fmt::print("model {} in 16 bit, {} as a checkpoint, {} of it compensators\n", size(bytes.reference), size(bytes.quantized),
             size(bytes.compensators));
  fmt::print("peak memory about {}{}, disk about {}\n", size(needs.memory),
             needs.mapped > 0 ? fmt::format(" ({} of it mapped files, which can give way)", size(needs.mapped)) : "", size(needs.disk));
  return 0;
}

}  // namespace spear::cli
