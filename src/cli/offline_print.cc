#include "cli/offline_print.h"

#include <fmt/format.h>

#include "base/progress.h"
#include "io/model_reader.h"

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
}

int print_plan(const RecoverOptions& options, const CommonOptions& common) {
  const ModelConfig config = read_model_config(options.reference);
  std::int64_t parameters = config.vocab_size * config.hidden_size;
  for (int index = 0; index < module_count(config); ++index) {
    parameters += in_features(config, ModuleId{index}.kind()) * out_features(config, ModuleId{index}.kind());
  }
  const Needs needs = estimate_needs(config, options.recipe);
  if (common.json) {
    print_json({{"schema", "spear.plan/1"}, {"recipe", to_json(options.recipe)}, {"memory_bytes", needs.memory}, {"disk_bytes", needs.disk}});
  } else {
    fmt::print("{}peak memory about {}, disk about {}\n", describe_plan(options.recipe, parameters, module_count(config)),
               format_bytes(static_cast<double>(needs.memory)), format_bytes(static_cast<double>(needs.disk)));
  }
  return 0;
}

}  // namespace spear::cli
