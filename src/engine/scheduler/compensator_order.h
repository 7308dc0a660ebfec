// Which compensators are worth their time most: what shedding keeps.
#pragma once

#include <filesystem>
#include <vector>

#include "model/weights.h"

namespace spear {

/// By module: bytes that a step reads for its compensator, a shared A split among its modules; 0 without one.
std::vector<double> compensator_shares(const ModelWeights& weights);

/// Damage of each module as diagnosis measured it (spear.json of a checkpoint); empty when it was not measured.
/// Throws Error(bad_input) for a manifest that does not fit `modules`.
std::vector<double> read_module_damage(const std::filesystem::path& model, std::size_t modules);

/// Modules with a compensator by damage per byte, the largest first; in order of the model where damage is unknown.
/// Time per step is proportional to bytes, see docs/scheduler.md.
std::vector<int> compensator_order(const ModelWeights& weights, const std::vector<double>& damage);

}  // namespace spear
