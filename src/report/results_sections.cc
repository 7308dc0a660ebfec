#include <fmt/format.h>

#include <algorithm>

#include "report/charts.h"
#include "report/html.h"
#include "report/sections.h"

namespace spear::report {
namespace {

using Findings = std::vector<std::pair<bool, std::string>>;  // good or bad, and what

std::optional<ManifestField> row_named(const ManifestField& manifest, const std::string& name) {
  for (const ManifestField& row : manifest["results"]["rows"].items()) {
    if (row["name"].text() == name) return row;
  }
  return std::nullopt;
}

std::string verdict_text(const ManifestField& manifest) {
  const auto gap = manifest["results"]["gap"]["rtn"];
  const auto perplexity = measured(gap["perplexity"]), kl = measured(gap["kl"]);
  const auto fraction = manifest["bytes"]["fraction"].number(),
             bits = manifest["bytes"]["bits_per_linear_weight"].number();
  std::string text;
  if (perplexity && kl) {
    text = fmt::format("Of what round-to-nearest lost, {} of the perplexity and {} of the divergence are recovered",
                       html::percent(perplexity->value, 0), html::percent(kl->value, 0));
  } else if (const auto recovered = row_named(manifest, "recovered");
             recovered && measured((*recovered)["perplexity"])) {
    text = fmt::format("Perplexity after recovery: {}", html::fixed(measured((*recovered)["perplexity"])->value, 2));
  }
  if (text.empty()) return {};
  if (bits) text += fmt::format(", at {} bits per linear weight", html::fixed(*bits, 2));
  if (fraction) text += fmt::format("; the compensators add {} to the model", html::percent(*fraction, 2));
  return text + ".";
}

/// Do the compensators earn their bytes? Says so either way.
void find_gain(const ManifestField& manifest, Findings& findings) {
  for (const ManifestField& pair : manifest["results"]["paired"].items()) {
    const auto kl = measured(pair["kl"]);
    if (pair["a"].text() != "recovered" || pair["b"].text() == "reference" || !kl || !kl->low || !kl->high) continue;
    const auto row = row_named(manifest, pair["b"].text());
    const std::string other = row ? label_of(*row) : pair["b"].text();
    const std::string numbers = fmt::format("{} nats per token (95 % interval {} to {})", html::fixed(kl->value, 4),
                                            html::fixed(*kl->low, 4), html::fixed(*kl->high, 4));
    if (*kl->high < 0) {
      findings.push_back({true, fmt::format("KL against \u201c{}\u201d on the same windows: {}.", other, numbers)});
    } else {
      findings.push_back({false, fmt::format("No proven gain over \u201c{}\u201d: KL changes by {}.", other, numbers)});
    }
  }
}

void find_budget(const ManifestField& manifest, Findings& findings) {
  const auto fraction = manifest["bytes"]["fraction"].number();
  if (!fraction || !manifest["recipe"]["budget"].is_number()) return;
  const double budget = manifest["recipe"]["budget"].number().value_or(0);
  const bool kept = *fraction <= budget * (1 + 1e-9);
  findings.push_back(
      {kept, fmt::format("{} of {} allowed for compensators.", html::percent(*fraction, 2), html::percent(budget, 2))});
}

/// A control that is better for no more bytes must not go unsaid.
void find_better_controls(const ManifestField& manifest, Findings& findings) {
  const auto ours = row_named(manifest, "recovered");
  if (!ours || !measured((*ours)["kl"]) || !(*ours)["bytes"].number()) return;
  const double kl = measured((*ours)["kl"])->value, bytes = (*ours)["bytes"].number().value_or(0);
  int compared = 0, better = 0;
  for (const ManifestField& control : manifest["controls"].items()) {
    const auto control_kl = measured(control["kl"]);
    const auto control_bytes = control["bytes"].number();
    if (!control_kl || !control_bytes || control["ours"].boolean().value_or(false)) continue;
    ++compared;
    if (control_kl->value >= kl || *control_bytes > bytes) continue;
    ++better;
    findings.push_back(
        {false, fmt::format("The control \u201c{}\u201d is better for no more bytes: KL {} against {}.",
                            control["name"].text(), html::fixed(control_kl->value, 4), html::fixed(kl, 4))});
  }
  if (compared > 0 && better == 0) {
    findings.push_back({true, fmt::format("None of {} controls is better for the same bytes or fewer.", compared)});
  }
}

std::string tile(const std::string& value, const std::string& name, const std::string& detail) {
  return fmt::format("<div class=\"tile\"><span>{}</span><b>{}</b><small>{}</small></div>", html::escape(name),
                     html::escape(value), html::escape(detail));
}

std::string gap_tile(const std::optional<MeasuredValue>& gap, const char* name) {
  if (!gap) return {};
  const std::string detail = gap->low && gap->high
                                 ? fmt::format("95 %: {} to {}", html::percent(*gap->low), html::percent(*gap->high))
                                 : "of the gap between reference and RTN";
  return tile(html::percent(gap->value), name, detail);
}

std::string tiles(const ManifestField& manifest) {
  const auto gap = manifest["results"]["gap"]["rtn"];
  std::string html = gap_tile(measured(gap["perplexity"]), "RTN perplexity gap recovered") +
                     gap_tile(measured(gap["kl"]), "RTN divergence recovered");
  const auto bytes = manifest["bytes"];
  const auto base = bytes["base"].number(), added = bytes["compensators"].number(),
             fraction = bytes["fraction"].number();
  if (added && fraction) {
    const auto linears = bytes["linears_fraction"].number();
    html += tile("+" + html::percent(*fraction, 2), "memory for compensators",
                 html::bytes(*added) + (linears ? ", " + html::percent(*linears, 2) + " of the linears" : ""));
  }
  if (base) {
    const auto parent = bytes["reference"].number();
    html += tile(html::bytes(*base + added.value_or(0)), "model with compensators",
                 parent ? "reference: " + html::bytes(*parent) : "packed linears, embedding, head");
  }
  return html.empty() ? html : "<div class=\"tiles\">" + html + "</div>";
}

std::string signed_cell(const std::optional<MeasuredValue>& difference, int decimals, double scale,
                        bool lower_is_better) {
  std::string cell = html::interval_cell(difference, decimals, scale);
  if (!difference || !difference->low || !difference->high) return cell;
  if (!difference->excludes_zero()) return cell + "<small>not significant</small>";
  return cell + ((difference->value < 0) == lower_is_better ? "<small>better</small>" : "<small>worse</small>");
}

std::string results_table(const ManifestField& rows, bool bytes_known) {
  std::vector<std::string> head{"Model", "Perplexity", "KL, nats/token", "Same top token, %"};
  if (bytes_known) head.push_back("Size");
  std::vector<std::vector<std::string>> cells;
  for (const ManifestField& row : rows.items()) {
    const std::string tone = tone_of(row["name"].text());
    cells.push_back({fmt::format("<span class=\"row-{}\">{}</span>", tone, html::escape(label_of(row))),
                     html::interval_cell(measured(row["perplexity"]), 2), html::interval_cell(measured(row["kl"]), 4),
                     html::interval_cell(measured(row["top1_agreement"]), 1, 100)});
    if (!bytes_known) continue;
    const auto bytes = row["bytes"].number();
    cells.back().push_back(bytes ? html::bytes(*bytes) : html::interval_cell(std::nullopt, 0));
  }
  return html::table(head, cells);
}

std::string paired_table(const ManifestField& manifest) {
  std::vector<std::vector<std::string>> cells;
  const auto name = [&](const ManifestField& field) {
    const auto row = row_named(manifest, field.text());
    return html::escape(row ? label_of(*row) : field.text());
  };
  for (const ManifestField& pair : manifest["results"]["paired"].items()) {
    cells.push_back(
        {name(pair["a"]) + " \u2212 " + name(pair["b"]), signed_cell(measured(pair["perplexity"]), 3, 1, true),
         signed_cell(measured(pair["kl"]), 4, 1, true), signed_cell(measured(pair["top1_agreement"]), 2, 100, false)});
  }
  if (cells.empty()) return {};
  return "<h3>Differences on the same windows</h3>" +
         html::table({"Pair", "Perplexity", "KL, nats/token", "Same top token, points"}, cells);
}

std::string gap_table(const ManifestField& gaps) {
  std::vector<std::vector<std::string>> cells;
  for (const auto& [baseline, gap] : gaps.members()) {
    const std::string name = baseline == "rtn"         ? "round-to-nearest (RTN)"
                             : baseline == "zero_byte" ? "the best quantizer without added bytes"
                                                       : baseline;
    cells.push_back({html::escape("Gap to " + name), html::interval_cell(measured(gap["perplexity"]), 1, 100),
                     html::interval_cell(measured(gap["log_perplexity"]), 1, 100),
                     html::interval_cell(measured(gap["kl"]), 1, 100)});
  }
  if (cells.empty()) return {};
  return "<h3>Share of the gap recovered, %</h3>" +
         html::table({"Baseline", "Perplexity", "Log-perplexity", "KL"}, cells);
}

std::string token_list(const ManifestField& tokens, const char* css_class, const char* title) {
  std::string list;
  for (const ManifestField& token : tokens.items()) {
    const auto before = token["before"].number(), after = token["after"].number();
    std::string odds;
    if (before && after) {
      odds = fmt::format("<small>probability {} \u2192 {}</small>", html::percent(std::exp(*before), 2),
                         html::percent(std::exp(*after), 2));
    }
    list += fmt::format("<li><bdi>{}</bdi><mark><bdi>{}</bdi></mark>{}</li>", html::escape(token["context"].text()),
                        html::escape(token["token"].text()), odds);
  }
  if (list.empty()) return {};
  return fmt::format("<div><h3>{}</h3><ul class=\"tokens {}\">{}</ul></div>", title, css_class, list);
}

}  // namespace

const char* tone_of(const std::string& row_name) {
  if (row_name == "reference") return "reference";
  if (row_name == "recovered") return "recovered";
  if (row_name == "quantized" || row_name == "zero_byte") return "quantized";
  return row_name.starts_with("rtn") ? "baseline" : "control";
}

std::string label_of(const ManifestField& row) {
  if (std::string label = row["label"].text(); !label.empty()) return label;
  const std::string name = row["name"].text();
  if (name == "reference") return "Reference";
  if (name == "rtn") return "Round to nearest (RTN)";
  if (name == "quantized" || name == "zero_byte") return "Quantized, no compensators";
  if (name == "recovered") return "Recovered";
  return name;
}

std::string headline(const ManifestField& manifest) {
  const std::string name = manifest["reference"]["name"].text();
  std::string html = fmt::format("<h1>{}</h1>", html::escape(name.empty() ? "Recovery report" : name + " at 4 bits"));
  std::string meta;
  const auto add = [&meta](const std::string& part) {
    if (!part.empty()) meta += (meta.empty() ? "" : " \u00b7 ") + html::escape(part);
  };
  const std::string version = manifest["spear_version"].text();
  add(version.empty() ? "SPEAR" : "SPEAR " + version);
  add(manifest["created"].text());
  add(manifest["recipe"]["scheme"].scalar_text());
  const std::string preset = manifest["recipe"]["preset"].scalar_text();
  add(preset.empty() ? "" : "preset " + preset);
  html += "<p class=\"meta\">" + meta + "</p>";
  if (const std::string verdict = verdict_text(manifest); !verdict.empty()) {
    html += "<p class=\"verdict\">" + html::escape(verdict) + "</p>";
  }
  Findings findings;
  find_gain(manifest, findings);
  find_better_controls(manifest, findings);
  find_budget(manifest, findings);
  std::string list;
  for (const auto& [good, text] : findings) {
    list += fmt::format("<li class=\"{}\">{}</li>", good ? "good" : "bad", html::escape(text));
  }
  if (!list.empty()) html += "<ul class=\"findings\">" + list + "</ul>";
  return "<header>" + html + tiles(manifest) + "</header>\n";
}

std::string results_section(const ManifestField& manifest) {
  const auto results = manifest["results"];
  std::vector<charts::IntervalRow> perplexity, kl;
  bool bytes_known = false;
  for (const ManifestField& row : results["rows"].items()) {
    const std::string name = row["name"].text(), label = label_of(row);
    bytes_known = bytes_known || row["bytes"].number();
    if (const auto value = measured(row["perplexity"])) perplexity.push_back({label, *value, tone_of(name)});
    if (const auto value = measured(row["kl"]); value && name != "reference")
      kl.push_back({label, *value, tone_of(name)});
  }
  if (perplexity.empty()) return {};
  const auto text = results["text"];
  std::string lead = "Lower is better. Dots are estimates, bars their 95 % intervals (bootstrap over windows)";
  if (const auto windows = text["windows"].number()) {
    lead += fmt::format("; {} windows of {:.0f} tokens of {}", *windows, text["context"].number().value_or(0),
                        text["name"].text().empty() ? "the text" : text["name"].text());
  }
  const std::string charts =
      "<div class=\"pair\">" + html::figure("Perplexity", charts::intervals(perplexity, 2)) +
      html::figure("KL(reference \u2016 model), nats per token", charts::intervals(kl, 4, /*from_zero=*/true)) +
      "</div>";
  return html::section(
      "Before and after", lead + ".",
      charts + results_table(results["rows"], bytes_known) + gap_table(results["gap"]) + paired_table(manifest));
}

std::string tasks_section(const ManifestField& manifest) {
  std::vector<std::vector<std::string>> cells;
  for (const ManifestField& task : manifest["results"]["tasks"].items()) {
    const std::string primary = task["primary"].text();
    const auto accuracy = measured(task[primary == "accuracy_norm" ? "accuracy_norm" : "accuracy"]);
    const auto reference = task["reference"].number();
    const auto items = task["items"].number();
    cells.push_back({html::escape(task["name"].text()), items ? html::fixed(*items, 0) : "",
                     reference ? html::fixed(100 * *reference, 1) : html::interval_cell(std::nullopt, 0),
                     html::interval_cell(accuracy, 1, 100), signed_cell(measured(task["difference"]), 1, 100, false)});
  }
  if (cells.empty()) return {};
  if (const auto mean = manifest["results"]["tasks_mean"]) {
    const auto reference = mean["reference"].number();
    cells.push_back({"<b>Mean</b>", "",
                     reference ? html::fixed(100 * *reference, 1) : html::interval_cell(std::nullopt, 0),
                     html::interval_cell(measured(mean["accuracy"]), 1, 100),
                     signed_cell(measured(mean["difference"]), 1, 100, false)});
  }
  return html::section(
      "Tasks", "Accuracy in per cent; multiple choice by log-likelihood per byte. Differences are paired over items.",
      html::table({"Task", "Items", "Reference", "This model", "Difference"}, cells));
}

std::string bytes_section(const ManifestField& manifest) {
  std::vector<charts::ScatterPoint> points;
  std::vector<std::vector<std::string>> cells;
  const auto add = [&](const ManifestField& entry, const std::string& label, const std::string& tone) {
    const auto bytes = entry["bytes"].number();
    const auto kl = measured(entry["kl"]);
    if (!bytes || !kl || kl->value <= 0) return;
    points.push_back({*bytes / 1e6, kl->value, label, tone});
    cells.push_back(
        {fmt::format("<span class=\"{}\"><span class=\"badge\">{}</span><span class=\"row-{}\">{}</span></span>", tone,
                     points.size(), tone, html::escape(label)),
         html::bytes(*bytes), html::interval_cell(kl, 4), html::interval_cell(measured(entry["perplexity"]), 2)});
  };
  for (const ManifestField& row : manifest["results"]["rows"].items()) {
    if (row["name"].text() != "reference") add(row, label_of(row), tone_of(row["name"].text()));
  }
  for (const ManifestField& control : manifest["controls"].items()) {
    add(control, control["name"].text(), control["ours"].boolean().value_or(false) ? "recovered" : "control");
  }
  if (points.size() < 2) return {};
  // A baseline several times worse would press all others together.
  double best = HUGE_VAL, worst = 0;
  for (const auto& point : points) {
    best = std::min(best, point.y);
    worst = std::max(worst, point.y);
  }
  const double limit = points.size() > 4 ? 4 * best : HUGE_VAL;
  const std::string chart = charts::scatter(points, "model size, MB", "KL, nats per token (log)", limit);
  const char* note = worst > limit ? "models with more than four times the least KL are in the table only" : "";
  return html::section("Bytes against quality", "Each point is a whole model. Towards the lower left is better.",
                       "<div class=\"pair\">" + html::figure("KL against size", chart, note) +
                           html::table({"Model", "Size", "KL", "Perplexity"}, cells) + "</div>");
}

std::string tokens_section(const ManifestField& manifest) {
  const auto tokens = manifest["tokens"];
  const std::string body =
      token_list(tokens["gained"], "gained", "Gained most") + token_list(tokens["lost"], "lost", "Lost most");
  if (body.empty()) return {};
  const std::string from = tokens["from"].text(), to = tokens["to"].text();
  const std::string lead = from.empty() || to.empty() ? "Probability of the text's own next token, before and after."
                                                      : "Probability of the text's own next token, from \u201c" + from +
                                                            "\u201d to \u201c" + to + "\u201d.";
  return html::section("Tokens that changed most", lead, "<div class=\"pair\">" + body + "</div>");
}

}  // namespace spear::report
