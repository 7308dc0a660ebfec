// Trained factors rewritten so that the leading ranks are the ones that correct most: what "train wide, truncate, retrain"
// cuts.
#pragma once

#include "quant/model_quantizer.h"
#include "torch/torch_model.h"

namespace spear {

/// For every site, the compensators in `model`'s slots: with M = E[z zᵀ] over `tokens` [sequences, length], M = L Lᵀ and
/// U S Vᵀ = SVD(B L) (B stacked over members), B' = U √S and A' = √S Vᵀ L⁻¹ A are the same product with ranks in falling
/// order of the output they make. Gate rows are not looked at. Fills `factors` and `singular_values` of the result, by site.
ModelQuantization principal_factors(TorchModel& model, const std::vector<CompensatorSite>& sites, const torch::Tensor& tokens);

}  // namespace spear
