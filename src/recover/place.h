// Which modules get a compensator, and of what rank, under the byte budget.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "ops/cpu/fusion_table.h"
#include "recover/trainable.h"

namespace spear {

enum class Placement {
  damage,   ///< water-filling of squared whitened singular values × damage (1 − CKA) ÷ bytes: the paper's idea
  fisher,   ///< the same with the Fisher estimate of the damage
  uniform,  ///< the same rank everywhere, as high as the budget allows, the rest one rank by module order
  random,   ///< ranks handed out one by one at random
  trained,  ///< `fisher` on the spectrum of factors trained at one high rank everywhere, then cut and trained again
};
Placement parse_placement(std::string_view text);  ///< Throws Error(usage) naming the valid ones.
const char* name(Placement placement);

/// A place where a compensator may go: one module, or the modules that share an input and so one A.
struct PlacementSite {
  std::vector<ModuleId> members;
  std::int64_t in_features = 0, out_features = 0;  ///< out: summed over the members
  double damage = 0;                               ///< summed over the members
  std::vector<double> singular_values;             ///< whitened, of the stacked error, the leading ones, falling
  double energy = 0;                               ///< sum of the squares of all singular values
};

struct PlacementOptions {
  Placement placement = Placement::uniform;
  std::int64_t budget_bytes = 0;
  std::int64_t max_rank = 16;
  std::int64_t gate_hidden = 0;  ///< 0: no gate
  std::int64_t gate_rows = 0;
  std::uint64_t seed = 0;
  std::optional<CompensatorCost> latency = {};  ///< water-filling then divides gains by microseconds, too
};

/// Bytes of a compensator of this rank at this site: int8 factors, f16 scales, bf16 gate per member.
std::int64_t site_bytes(const PlacementSite& site, std::int64_t rank, std::int64_t gate_hidden, std::int64_t gate_rows);

/// Sites of a model: per input group when `share_a`, else per module. Damage and singular values are left at zero.
std::vector<PlacementSite> placement_sites(const ModelConfig& config, bool share_a);

/// One shape per site with rank > 0. The bytes never exceed the budget.
std::vector<CompensatorShape> place(const std::vector<PlacementSite>& sites, const PlacementOptions& options);

/// The same, with what the file's header takes inside `file_bytes`: sets options.budget_bytes to what is left for factors,
/// scales and gates. A header never takes more than a quarter: it would eat a toy's budget whole.
std::vector<CompensatorShape> place_within_file(const std::vector<PlacementSite>& sites, PlacementOptions& options, std::int64_t file_bytes);

/// Microseconds that all of them add to a decode step.
double placed_us(const std::vector<PlacementSite>& sites, const std::vector<CompensatorShape>& shapes, const CompensatorCost& cost);

/// The manifest's "placement": policy, ranks by ModuleId, shared A.
nlohmann::json placement_json(const std::vector<CompensatorShape>& shapes, const PlacementOptions& options, int modules, bool share_a);

}  // namespace spear
