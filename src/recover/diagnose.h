// Where quantization hurts: the change of the final hidden state when one module alone is quantized (or restored).
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "quant/model_quantizer.h"
#include "torch/libtorch.h"
#include "torch/torch_model.h"

namespace spear {

/// Debiased linear CKA of two sets of row vectors (HSIC₁ of Song et al. 2012 in the feature form of Kornblith et al.
/// 2019): float64, 1 for equal up to rotation and scale, about 0 for independent ones, and possibly below.
/// x: [n, d1], y: [n, d2], n > 3.
double debiased_cka(const torch::Tensor& x, const torch::Tensor& y);

struct DiagnoseOptions {
  std::int64_t sequences = 8, length = 256;
  bool restore_one = false;  ///< also: everything quantized, one module restored
  bool delta_kl = false;     ///< also KL of the output
  std::int64_t kl_tokens = 1024;
};

/// All vectors by ModuleId; empty when not measured.
struct Damage {
  std::vector<double> cka;          ///< 1 − CKA when this module alone is quantized, not below 0
  std::vector<double> delta_kl;     ///< KL(reference ‖ that), nats per token
  std::vector<double> restore_cka;  ///< gain in CKA when this module alone is restored
  std::vector<double> restore_kl;   ///< fall of KL when this module alone is restored
  std::vector<double> fisher;       ///< ½ E[⟨∂NLL/∂y, ΔW x⟩²], one forward and backward pass for all modules
  double noise_floor = 0;           ///< 1 − CKA between two halves' worth of rounding noise: damage below it is none
};

/// How concentrated damage is (design §2).
struct Spread {
  double entropy = 0;             ///< −Σ p ln p of the damage above the noise floor
  double normalized_entropy = 0;  ///< divided by ln(number of modules)
  double effective_modules = 0;   ///< exp(entropy)
};
Spread damage_spread(const std::vector<double>& damage, double noise_floor);

/// `model` holds the reference weights in its slots (and again at the end); `quantized` by ModuleId.
/// tokens: [sequences, length] int64. The prefix before a module's layer is computed once.
Damage diagnose(TorchModel& model, const std::vector<QuantizedLinear>& quantized, const torch::Tensor& tokens,
                const DiagnoseOptions& options);

/// The manifest's "diagnosis" (docs/checkpoint.md), rank correlations included.
nlohmann::json to_json(const Damage& damage);

/// Table of the modules with most damage, for people.
std::string damage_table(const Damage& damage, std::size_t rows);

}  // namespace spear
