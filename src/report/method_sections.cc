#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/progress.h"
#include "model/config.h"
#include "report/charts.h"
#include "report/html.h"
#include "report/sections.h"

namespace spear::report {
namespace {

/// "half of it sits in 12 of 210 modules; most in ..."
std::string concentration(const std::vector<std::optional<double>>& damage) {
  std::vector<std::pair<double, int>> sorted;
  double total = 0;
  for (std::size_t i = 0; i < damage.size(); ++i) {
    if (!damage[i] || *damage[i] <= 0) continue;
    sorted.push_back({*damage[i], static_cast<int>(i)});
    total += *damage[i];
  }
  if (sorted.size() < 3) return {};
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double covered = 0;
  std::size_t half = 0;
  while (covered < total / 2) covered += sorted[half++].first;
  return fmt::format("Half of the damage sits in {} of {} modules; first come {}, {} and {}.", half, damage.size(),
                     ModuleId{sorted[0].second}.name(), ModuleId{sorted[1].second}.name(),
                     ModuleId{sorted[2].second}.name());
}

std::string diagnosis_facts(const ManifestField& diagnosis) {
  std::vector<std::vector<std::string>> rows;
  const auto add = [&rows](const std::string& name, const std::optional<double>& value, int digits) {
    if (value) rows.push_back({html::escape(name), html::significant(*value, digits)});
  };
  add("Entropy of the damage", diagnosis["entropy"].number(), 4);
  add("Effective number of modules, exp(H)", diagnosis["n_eff"].number(), 4);
  add("Noise floor", diagnosis["noise_floor"].number(), 3);
  add("Tokens measured on", diagnosis["tokens"].number(), 9);
  for (const auto& [pair, value] : diagnosis["spearman"].members()) add("Rank correlation, " + pair, value.number(), 3);
  return rows.empty() ? std::string() : html::table({"Figure", "Value"}, rows, "narrow");
}

/// Index of "model.layers.3.mlp.up_proj", nothing for any other name.
std::optional<std::size_t> module_index(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::size_t layer = 0;
  const auto [end, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  if (error != std::errc() || layer > 10000) return std::nullopt;
  const std::string_view rest(end, static_cast<std::size_t>(name.data() + name.size() - end));
  for (int kind = 0; kind < kLinearsPerLayer; ++kind) {
    if (rest.starts_with('.') && rest.substr(1) == kLinearNames[static_cast<std::size_t>(kind)]) {
      return layer * kLinearsPerLayer + static_cast<std::size_t>(kind);
    }
  }
  return std::nullopt;
}

struct GateRow {
  std::string module;
  double mean, std;
  std::optional<double> min, max;
};

std::vector<GateRow> gate_rows(const ManifestField& gates) {
  std::vector<GateRow> rows;
  for (const ManifestField& gate : gates.items()) {
    const auto mean = gate["mean"].number(), std = gate["std"].number();
    if (mean && std) rows.push_back({gate["module"].text(), *mean, *std, gate["min"].number(), gate["max"].number()});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const GateRow& a, const GateRow& b) { return a.std > b.std; });
  return rows;
}

std::string gate_table(const std::vector<GateRow>& gates) {
  if (gates.empty()) return {};
  std::vector<std::vector<std::string>> cells;
  for (std::size_t i = 0; i < std::min<std::size_t>(gates.size(), 10); ++i) {
    const auto bound = [](const std::optional<double>& value) { return value ? html::fixed(*value, 2) : "\u2013"; };
    cells.push_back({"<code>" + html::escape(gates[i].module) + "</code>", html::fixed(gates[i].mean, 3),
                     html::fixed(gates[i].std, 3), bound(gates[i].min), bound(gates[i].max)});
  }
  return "<h3>Gates that move most</h3>" + html::table({"Module", "Mean", "Std", "Least", "Most"}, cells);
}

std::string gate_heatmap(const std::vector<GateRow>& gates, std::size_t modules) {
  for (const GateRow& gate : gates) {
    if (const auto index = module_index(gate.module))
      modules = std::max(modules, (*index / kLinearsPerLayer + 1) * kLinearsPerLayer);
  }
  std::vector<std::optional<double>> spread(modules);
  for (const GateRow& gate : gates) {
    if (const auto index = module_index(gate.module)) spread[*index] = gate.std;
  }
  return html::figure("Gate movement", charts::module_heatmap(spread, {.digits = 2, .tone = "heat2"}),
                      "standard deviation of g over calibration tokens; 0 is a static compensator");
}

std::string hashes_table(const ManifestField& manifest) {
  std::vector<std::vector<std::string>> rows;
  const auto add = [&rows](const std::string& name, const std::string& value, bool code = false) {
    if (value.empty()) return;
    rows.push_back({html::escape(name), code ? "<code>" + html::escape(value) + "</code>" : html::escape(value)});
  };
  add("Machine", manifest["machine"].text());
  add("Threads", manifest["threads"].scalar_text());
  add("Seed", manifest["seed"].scalar_text());
  for (const auto& [field, name] : {std::pair{"reference", "Reference"}, std::pair{"backbone", "Backbone"}}) {
    add(name, manifest[field]["path"].text());
    add(std::string(name) + ", SHA-256", manifest[field]["sha256"].text(), true);
  }
  add("Text, SHA-256", manifest["results"]["text"]["sha256"].text(), true);
  for (const auto& [file, value] : manifest["files"].members()) {
    add(file, value.is_object() ? value["sha256"].text() : value.text(), true);
  }
  return rows.empty() ? std::string() : "<h3>Environment and hashes</h3>" + html::table({"", ""}, rows, "key");
}

std::string recipe_table(const ManifestField& recipe) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, value] : recipe.members()) {
    if (value) rows.push_back({"<code>" + html::escape(name) + "</code>", html::escape(value.scalar_text())});
  }
  return rows.empty() ? std::string() : "<h3>Recipe, resolved</h3>" + html::table({"", ""}, rows, "key");
}

std::string stages_table(const ManifestField& stages) {
  double longest = 0, total = 0;
  for (const ManifestField& stage : stages.items()) {
    longest = std::max(longest, stage["seconds"].number().value_or(0));
    total += stage["seconds"].number().value_or(0);
  }
  if (longest <= 0) return {};
  std::vector<std::vector<std::string>> rows;
  for (const ManifestField& stage : stages.items()) {
    const double seconds = std::max(stage["seconds"].number().value_or(0), 0.0);
    const auto peak = stage["peak_bytes"].number();
    rows.push_back({html::escape(stage["name"].text()), html::escape(format_duration(seconds)),
                    peak ? html::bytes(*peak) : "\u2013",
                    fmt::format("<span class=\"bar\" style=\"width:{:.1f}%\"></span>", 100 * seconds / longest)});
  }
  return fmt::format("<h3>Time per stage: {} in all</h3>", html::escape(format_duration(total))) +
         html::table({"Stage", "Time", "Peak memory", ""}, rows, "stages");
}

}  // namespace

std::string diagnosis_section(const ManifestField& manifest) {
  const auto diagnosis = manifest["diagnosis"];
  const auto damage = per_module(diagnosis["damage"]);
  const std::string metric = diagnosis["metric"].text() == "cka" || !diagnosis["metric"]
                                 ? "1 \u2212 CKA of the final hidden state"
                                 : diagnosis["metric"].text();
  const std::string maps =
      html::figure("Damage", charts::module_heatmap(damage), metric + ", this module alone quantized") +
      html::figure("\u0394KL", charts::module_heatmap(per_module(diagnosis["delta_kl"])),
                   "KL of the output, this module alone quantized") +
      html::figure("Restored", charts::module_heatmap(per_module(diagnosis["restore"])),
                   "all quantized, this module alone restored") +
      html::figure("Fisher estimate", charts::module_heatmap(per_module(diagnosis["fisher"])),
                   "one backward pass for all modules");
  if (maps.empty()) return {};
  return html::section("Where quantization hurts", concentration(damage),
                       "<div class=\"pair\">" + maps + "</div>" + diagnosis_facts(diagnosis));
}

std::string compensators_section(const ManifestField& manifest) {
  const auto placement = manifest["placement"];
  const auto ranks = per_module(placement["ranks"]);
  const auto gates = gate_rows(manifest["gates"]);
  int used = 0;
  for (const auto& rank : ranks) used += rank.value_or(0) > 0 ? 1 : 0;
  std::string lead;
  if (!ranks.empty()) {
    lead = fmt::format("{} of {} modules have a compensator", used, ranks.size());
    if (const std::string policy = placement["policy"].text(); !policy.empty()) lead += "; placement: " + policy;
    if (const auto shared = placement["shared_a"].boolean()) {
      lead += *shared ? "; modules with the same input share A" : "; every module has an A of its own";
    }
    lead += ".";
    const auto added = placement["added_us"].number(), before = placement["without_latency"]["added_us"].number();
    if (added && before) {
      lead += fmt::format(" Microseconds weighed, too: by the latency table they add {:.1f} \u00b5s to a decoded token, {:.1f} where bytes alone decide.",
                          *added, *before);
    }
  }
  const std::string maps =
      html::figure("Rank", charts::module_heatmap(ranks, {.print_values = true}), "number in each cell") +
      html::figure("Bytes", charts::module_heatmap(per_module(placement["bytes"])), "of each compensator") +
      gate_heatmap(gates, ranks.size());
  const std::string body =
      (maps.empty() ? std::string() : "<div class=\"pair\">" + maps + "</div>") + gate_table(gates);
  return html::section("Compensators", lead, body);
}

std::string training_section(const ManifestField& manifest) {
  const auto calibration = manifest["calibration"];
  charts::Line loss{"training loss", "control", {}, false}, held_out{"held-out KL", "recovered", {}, true};
  for (const ManifestField& step : calibration["steps"].items()) {
    const auto at = step["step"].number();
    if (!at) continue;
    if (const auto value = step["loss"].number()) loss.points.push_back({*at, *value});
    if (const auto value = step["held_out_kl"].number()) held_out.points.push_back({*at, *value});
  }
  std::string lead = "Loss in nats per token";
  if (const auto tokens = calibration["tokens"].number()) {
    lead += fmt::format("; {:.0f} tokens", *tokens);
    if (const auto sequences = calibration["sequences"].number())
      lead += fmt::format(" in {:.0f} sequences", *sequences);
    lead += " sampled from the reference";
  }
  if (const auto best = calibration["best_step"].number())
    lead += fmt::format("; the state of step {:.0f} was kept", *best);
  return html::section("Training", lead + ".", html::figure("", charts::lines({loss, held_out}, "step")));
}

std::string provenance_section(const ManifestField& manifest) {
  std::string commands;
  const auto add = [&commands](const std::string& command) {
    if (!command.empty()) commands += "<pre><code>" + html::escape(command) + "</code></pre>";
  };
  add(manifest["command"].text());
  for (const ManifestField& command : manifest["commands"].items()) add(command.text());
  const std::string left = recipe_table(manifest["recipe"]), right = hashes_table(manifest);
  std::string body = commands + stages_table(manifest["stages"]);
  if (!left.empty() || !right.empty())
    body += "<div class=\"pair\"><div>" + right + "</div><div>" + left + "</div></div>";
  return html::section("How to make this again", "The same seed, threads and machine give the same files, bit for bit.",
                       body);
}

}  // namespace spear::report
