// Models of a given shape with random weights: speed does not depend on what the weights are.
#pragma once

#include <cstdint>
#include <string_view>

#include "model/weights.h"

namespace spear {

/// "smollm2-135m", "llama-1b" (16 layers, 2048 / 8192, 32 / 8 heads), "llama-3b", "llama-7b"; vocabulary 49,152 unless
/// given. Throws Error(usage) naming the known shapes.
ModelConfig shape_config(std::string_view shape, std::int64_t vocabulary = 49152);

struct RandomWeightsOptions {
  W4Scheme scheme = {};
  double compensator_budget = 0.01;  ///< bytes of the compensators per byte of the model; 0: none
  std::int64_t gate_hidden = 8;      ///< 0: no gates
  std::uint64_t seed = 1;
};

/// Packed linears, a bf16 embedding that is the head too, compensators of one rank on every module with A shared by
/// the modules of an input. Throws Error(out_of_resources) when memory is short.
ModelWeights random_weights(const ModelConfig& config, const RandomWeightsOptions& options = {});

}  // namespace spear
