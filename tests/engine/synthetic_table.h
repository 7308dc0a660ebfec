// A latency table of round numbers: 4 ms a step, 0.25 ms a row, 1 us per 10 tokens of a decode's context, attention of
// prompts, and compensators of 1 ms + 0.05 ms a row.
#pragma once

#include "engine/scheduler/latency_table.h"

namespace spear::testing {

inline LatencyTable synthetic_table() {
  LatencyTable table;
  table.key = {"a machine", "generic", "0", "bf16", "a16", "int8", "a model", 1};
  table.created = "2026-11-25T00:00:00Z";
  const auto fill = [](LatencyGrid& grid, std::vector<double> x, std::vector<double> y, auto value) {
    grid.x = std::move(x);
    grid.y = std::move(y);
    for (const double at_x : grid.x) {
      for (const double at_y : grid.y) grid.value.push_back(value(at_x, at_y));
    }
  };
  fill(table.base, {0, 1, 32, 512}, {0, 1, 64, 512},
       [](double b, double p) { return b + p == 0 ? 0.0 : 5 + 0.3 * (b + p); });
  fill(table.decode_context, {1, 512}, {32, 8192}, [](double b, double c) { return 1e-4 * b * (c - 32); });
  fill(table.prefill_context, {1, 512}, {0, 8192}, [](double p, double k) { return 5e-6 * p * k; });
  fill(table.compensators, {0, 1}, {1, 1024}, [](double d, double rows) { return d * (1 + 0.05 * rows); });
  table.module_us = {1, 2, 3};
  table.held_out = {{{3, 300, 5, 10, 1}, 10, 11}, {{1, 32, 0, 0, 0.5}, 10, 10}};
  // A compensator of rank r costs 2 us and 1 ns a weight at one token, and each way of fusing is best once.
  for (const std::int64_t rank : {1, 3}) {
    const double at_one = 2 + 1e-3 * static_cast<double>(rank) * 300;
    table.kernels.push_back({{100, 200, rank}, 5, 1, 10, {10 + at_one, 20, 30}});
    table.kernels.push_back({{100, 200, rank}, 5, 16, 50, {60, 55, 55 - 1e-3}});
    table.kernels.push_back({{100, 200, rank}, 5, 64, 90, {120, 110, 100}});
  }
  return table;
}

}  // namespace spear::testing
