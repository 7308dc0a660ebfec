// What a model consists of and what it takes: bytes by part, bits per weight, compensators against their budget.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/weights.h"

namespace spear {

/// "embedding", "head" (absent when tied), "linears", "norms", "compensators" (absent when there are none).
struct PartSummary {
  std::string name, format;  ///< format: "BF16", "w4-channel-sym", ...; several are joined by " + "
  std::int64_t parameters = 0, bytes = 0;
};

struct CompensatorSummary {
  std::string module;
  std::int64_t rank = 0, gate_rows = 0, gate_hidden = 0;
  std::int64_t bytes = 0;  ///< B and gate, and A where this module is the first that uses it
};

struct ModelSummary {
  ModelConfig config;
  std::vector<PartSummary> parts;
  std::int64_t parameters = 0, bytes = 0;  ///< of all parts but the compensators; of all parts
  double bits_per_linear_weight = 0;       ///< scales and zero points included
  std::int64_t budget_base_bytes = 0;      ///< the budget's denominator (design: budget)
  std::int64_t linear_bytes = 0, compensator_bytes = 0;
  std::vector<CompensatorSummary> compensators;

  double compensator_fraction() const;          ///< of the budget's base
  double compensator_linears_fraction() const;  ///< of the linears alone
};

ModelSummary summarize(const ModelWeights& weights);

/// {"config","parts","parameters","bytes","bits_per_linear_weight","compensators"}
nlohmann::json to_json(const ModelSummary& summary);

}  // namespace spear
