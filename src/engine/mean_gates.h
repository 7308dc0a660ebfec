// What a gate is on average: all that a static adapter can keep of it.
#pragma once

#include <cstdint>
#include <span>

#include "io/lora_writer.h"
#include "ops/cpu_model.h"

namespace spear {

/// Mean over all tokens of every rank's gate, by module; compensators are applied meanwhile. `tokens`: whole sequences of
/// `length`. Replaces the model's observer.
MeanGates measure_mean_gates(CpuModel& model, std::span<const std::int32_t> tokens, std::int64_t length);

/// Whether any compensator has a gate.
bool has_gates(const ModelWeights& weights);

}  // namespace spear
