// A latency table from anybody: refused, or a table whose every prediction is a finite time.
#include "engine/scheduler/latency_table.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "fuzz_file.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  const auto path = directory.write("latency.json", fuzz::as_text(data, size));
  fuzz::survives([&] {
    const LatencyTable table = read_latency_table(path);
    for (const std::int64_t rows : {0, 1, 7, 4096}) {
      for (const StepShape& shape :
           {StepShape{rows, 100 * rows, 0, 0, 1}, StepShape{0, 0, rows, 1e5, 0}, StepShape{rows, 0, rows, 3, 0.4}}) {
        if (!std::isfinite(table.milliseconds(shape))) std::abort();
      }
    }
    const auto cost = compensator_cost(table.kernels);
    if (cost && !(std::isfinite(cost->fixed_us) && cost->fixed_us >= 0 && std::isfinite(cost->us_per_weight) && cost->us_per_weight >= 0)) std::abort();
    (void)FusionTable(table.kernels).at({960, 576, 3}, 4);
    (void)table.error_quantile(0.99);
    (void)to_json(table.scaled(2)).dump();
  });
  return 0;
}
