#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "engine/model_summary.h"
#include "io/checkpoint.h"
#include "io/model_reader.h"

namespace spear::cli {
namespace {

struct Options {
  std::string model;
  bool verify = false, modules = false;
};

std::string megabytes(std::int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

void print_config(const Options& options, ModelKind kind, const ModelSummary& summary) {
  const ModelConfig& c = summary.config;
  fmt::print("{} ({})\n", options.model, name(kind));
  fmt::print(
      "{}: {} layers, hidden {}, intermediate {}, {} heads of {} ({} for keys and values), vocabulary {}, "
      "{} positions\n",
      c.model_type, c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.head_dim,
      c.num_key_value_heads, c.vocab_size, c.max_position_embeddings);
  if (c.rotated_stream) fmt::print("residual stream rotated (docs/checkpoint.md); for other programs: spear export\n");
}

void print_parts(const ModelSummary& summary) {
  fmt::print("\n{:<14}{:>14}{:>12}  {}\n", "part", "parameters", "bytes", "format");
  for (const auto& part : summary.parts) {
    fmt::print("{:<14}{:>14}{:>12}  {}\n", part.name, part.parameters > 0 ? fmt::format("{}", part.parameters) : "",
               megabytes(part.bytes), part.format);
  }
  fmt::print("{:<14}{:>14}{:>12}\n", "all", summary.parameters, megabytes(summary.bytes));
  fmt::print("bits per linear weight: {:.3f}\n", summary.bits_per_linear_weight);
}

void print_compensators(const ModelSummary& summary, bool each) {
  const auto& all = summary.compensators;
  if (all.empty()) {
    fmt::print("compensators: none\n");
    return;
  }
  const auto [low, high] =
      std::minmax_element(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  const auto gated = std::count_if(all.begin(), all.end(), [](const auto& c) { return c.gate_hidden > 0; });
  fmt::print("compensators: {} of {} modules, rank {} to {}, {} with a gate\n", all.size(),
             module_count(summary.config), low->rank, high->rank, gated);
  fmt::print("  {} = {:.3f} % of the budget's base of {}, {:.3f} % of the linears\n",
             megabytes(summary.compensator_bytes), 100 * summary.compensator_fraction(),
             megabytes(summary.budget_base_bytes), 100 * summary.compensator_linears_fraction());
  if (!each) return;
  fmt::print("  {:<40}{:>6}{:>11}{:>8}{:>10}\n", "module", "rank", "gate rows", "hidden", "bytes");
  for (const auto& c : all) {
    fmt::print("  {:<40}{:>6}{:>11}{:>8}{:>10}\n", c.module, c.rank, c.gate_rows, c.gate_hidden, c.bytes);
  }
}

/// "23.29 [22.10, 24.61]" of an interval in the manifest, "-" of anything else.
std::string interval(const nlohmann::json& row, const char* field) {
  const auto found = row.find(field);
  if (found == row.end() || !found->is_object()) return "-";
  const auto number = [&](const char* part) {
    const auto value = found->find(part);
    return value != found->end() && value->is_number() ? fmt::format("{:.4g}", value->get<double>()) : "-";
  };
  return fmt::format("{} [{}, {}]", number("value"), number("low"), number("high"));
}

/// The rows of results before and after; none when the manifest has no such part.
nlohmann::json result_rows(const nlohmann::json& manifest) {
  const nlohmann::json::json_pointer rows("/results/rows");
  if (!manifest.contains(rows) || !manifest.at(rows).is_array()) return nlohmann::json::array();
  return manifest.at(rows);
}

void print_results(const nlohmann::json& manifest) {
  const auto rows = result_rows(manifest);
  if (rows.empty()) return;
  fmt::print("\n{:<14}{:<26}{:<28}{}\n", "results", "perplexity", "KL", "top-1 agreement");
  for (const auto& row : rows) {
    if (!row.is_object()) continue;
    const auto label = row.find("name");
    fmt::print("{:<14}{:<26}{:<28}{}\n", label != row.end() && label->is_string() ? label->get<std::string>() : "?",
               interval(row, "perplexity"), interval(row, "kl"), interval(row, "top1_agreement"));
  }
}

int run(const CommonOptions& common, const Options& options) {
  apply(common);
  const ModelKind kind = kind_of_model(options.model);
  const bool has_manifest = kind == ModelKind::checkpoint && std::filesystem::exists(options.model + "/spear.json");
  if (options.verify) {
    if (!has_manifest) {
      throw usage_error("only SPEAR checkpoints carry hashes", options.model, "leave --verify out");
    }
    verify_checkpoint(options.model);
  }
  const ModelSummary summary = summarize(read_model(options.model));
  const auto manifest = has_manifest ? read_manifest(options.model) : nlohmann::json::object();
  if (common.json) {
    auto document = to_json(summary);
    document["schema"] = "spear.inspect/1";
    document["model"] = options.model;
    document["kind"] = name(kind);
    document["results"] = result_rows(manifest);
    if (options.verify) document["verified"] = true;
    print_json(document);
  } else {
    print_config(options, kind, summary);
    print_parts(summary);
    print_compensators(summary, options.modules);
    print_results(manifest);
    if (options.verify) fmt::print("hashes: every file is as written\n");
  }
  const std::string model = shell_quoted(options.model);
  print_next(common, has_manifest ? fmt::format("spear report --model {} --out report.html", model)
                                  : fmt::format("spear generate --model {} --prompt TEXT", model));
  return 0;
}

}  // namespace

void add_inspect(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("inspect", "Show what a model consists of, what it takes and how it was measured",
                               {"spear inspect --model recovered --verify", "spear inspect --model model.gguf --json"},
                               [=] { return run(*common, *options); });
  command.add_option("--model,model", options->model, "Hugging Face directory, GGUF file or SPEAR checkpoint")
      ->type_name("PATH")
      ->required()
      ->group("Model");
  command.add_flag("--modules", options->modules, "List every compensator")->group("Output");
  command.add_flag("--verify", options->verify, "Check the files against the hashes in spear.json")->group("Model");
  add_common_options(command, common);
}

}  // namespace spear::cli
