#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "engine/bench.h"

namespace spear {
namespace {

double smallest(const BenchResult& r) { return *std::min_element(r.rates.begin(), r.rates.end()); }
double largest(const BenchResult& r) { return *std::max_element(r.rates.begin(), r.rates.end()); }

using Row = std::vector<std::string>;

const Row kHeader = {"test",     "threads", "batch", "tokens",   "context", "compensators",
                     "tokens/s", "min",     "max",   "MB/token", "roofline"};

Row cells(const BenchResult& r) {
  return {r.test,
          fmt::format("{}", r.threads),
          fmt::format("{}", r.batch),
          fmt::format("{}", r.tokens),
          fmt::format("{}", r.context),
          r.compensators ? "on" : "off",
          fmt::format("{:.1f}", r.median()),
          fmt::format("{:.1f}", smallest(r)),
          fmt::format("{:.1f}", largest(r)),
          fmt::format("{:.2f}", r.bytes_per_token / 1e6),
          fmt::format("{:.0f} %", 100 * r.roofline_fraction)};
}

std::string joined(const Row& row, const char* separator) { return fmt::format("{}", fmt::join(row, separator)); }

std::string probe_line(const BenchReport& report) {
  std::string out = "memory read, GB/s:";
  for (const auto& [threads, rate] : report.probe_gb_s) out += fmt::format(" {:.1f} ({} threads)", rate, threads);
  return out;
}

}  // namespace

nlohmann::json to_json(const BenchReport& report) {
  nlohmann::json json = {
      {"schema", "spear.bench/1"}, {"probe_gb_s", nlohmann::json::object()}, {"results", nlohmann::json::array()}};
  for (const auto& [threads, rate] : report.probe_gb_s) json["probe_gb_s"][fmt::format("{}", threads)] = rate;
  for (const BenchResult& r : report.results) {
    json["results"].push_back(
        {{"test", r.test},
         {"threads", r.threads},
         {"batch", r.batch},
         {"tokens", r.tokens},
         {"context", r.context},
         {"compensators", r.compensators},
         {"tokens_per_second", {{"median", r.median()}, {"min", smallest(r)}, {"max", largest(r)}, {"all", r.rates}}},
         {"bytes_per_token", r.bytes_per_token},
         {"roofline_fraction", r.roofline_fraction}});
  }
  return json;
}

std::string to_csv(const BenchReport& report) {
  std::string out = "test,threads,batch,tokens,context,compensators,median,min,max,bytes_per_token,roofline_fraction\n";
  for (const BenchResult& r : report.results) {
    out += fmt::format("{},{},{},{},{},{},{:.3f},{:.3f},{:.3f},{:.0f},{:.4f}\n", r.test, r.threads, r.batch, r.tokens,
                       r.context, r.compensators ? "on" : "off", r.median(), smallest(r), largest(r), r.bytes_per_token,
                       r.roofline_fraction);
  }
  return out;
}

std::string to_markdown(const BenchReport& report) {
  std::string out = "| " + joined(kHeader, " | ") + " |\n|" + joined(Row(kHeader.size(), "---"), "|") + "|\n";
  for (const BenchResult& r : report.results) out += "| " + joined(cells(r), " | ") + " |\n";
  return out + "\n" + probe_line(report) + "\n";
}

std::string to_table(const BenchReport& report) {
  std::vector<Row> rows = {kHeader};
  for (const BenchResult& r : report.results) rows.push_back(cells(r));
  std::vector<std::size_t> widths(kHeader.size());
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      out += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    out += "\n";
  }
  return out + probe_line(report) + "\n";
}

}  // namespace spear
