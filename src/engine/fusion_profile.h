// Measures, for every shape of 4-bit linears with a compensator, which way of fusing the two is fastest on this machine:
// the adaptive kernel-fusion dispatch of the paper.
#pragma once

#include <span>
#include <vector>

#include "engine/profile.h"
#include "ops/cpu/fusion_table.h"

namespace spear {

/// Of all shapes that the model's compensated operations have, by shape and then tokens. Every time is taken inside whole
/// steps of the model, each way by turns with the others and with compensators off. `seconds` for all of them; three
/// steps of each at least. Empty without compensators, which must be on and at full density, and are so afterwards.
std::vector<FusionTiming> profile_fusion(CpuModel& model, const ProfileOptions& options, double seconds);

/// Microseconds that all compensators add to a step of so many tokens, if one way is fixed for all (`automatic`: each
/// shape takes its best).
double added_us(std::span<const FusionTiming> timings, std::int64_t tokens, Fusion fusion);

}  // namespace spear
