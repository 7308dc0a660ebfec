// What a recovery will take, from the model's config and the recipe alone: `--dry-run` and the preflight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "recover/recipe.h"

namespace spear {

enum class PlannedCommand { recover, quantize };

/// Memory and disk that a run takes at its peak, in bytes. `mapped` of the memory are pages of files, which the system takes
/// back when something else needs them.
struct Needs {
  std::int64_t memory = 0, mapped = 0, disk = 0;
};
/// compute_bytes: of a number that linears are computed in, 2 (bfloat16) or 4. reference_bytes: of a number of the
/// reference as it is held (weights_type() in io/model_reader.h).
Needs estimate_needs(const ModelConfig& config, const Recipe& recipe, PlannedCommand command, std::int64_t compute_bytes,
                     std::int64_t reference_bytes);

/// Bytes of the model before (in 16 bit) and after, and of what the budget is a share of (its embedding at 8 bit).
struct PlannedBytes {
  std::int64_t reference = 0, quantized = 0, budget_base = 0, compensators = 0;
};
PlannedBytes planned_bytes(const ModelConfig& config, const Recipe& recipe);

struct PlannedStage {
  std::string name, what;
  double seconds = 0;
};
/// Of the machine that planned times are scaled from: two Zen 4 cores.
inline constexpr double kPlannedGflops = 250;
/// Products of linears on a machine, GFLOP/s (machine_speed.h): in the type that models compute in, of `compute_bytes`,
/// and in float32, which quantizers and evaluation keep to.
struct ProductSpeed {
  double gflops = kPlannedGflops, float32_gflops = kPlannedGflops;
  std::int64_t compute_bytes = 2;
};
/// Time per stage at that speed. `text_tokens`: of the text that is measured on, 0 for held-out samples.
std::vector<PlannedStage> planned_stages(const ModelConfig& config, const Recipe& recipe, PlannedCommand command,
                                         std::int64_t text_tokens, const ProductSpeed& speed = {});

}  // namespace spear
