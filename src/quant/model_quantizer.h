// Quantizes all linears of a model, group after group, each on the inputs that the already quantized prefix gives it.
#pragma once

#include <functional>
#include <vector>

#include "quant/gptq.h"
#include "quant/whitened_factors.h"
#include "torch/torch_model.h"

namespace spear {

enum class Quantizer { rtn, clip, gptq };

// What `gptq` does beside GPTQ, each measured (docs/algorithm.md). For a group of modules with one input x:
// - Token weights w_t = min(1, cap · median(n) / n_t), n_t = |x_t|² in the reference (for o_proj and down_proj times the
//   same of the residual stream): attention sinks and other outlier tokens otherwise own every moment below.
// - Targets W' = W + (α W (C − H) + ρ R)(H + λI)⁻¹, H = E[w x xᵀ], C = E[w x_reference xᵀ] and, for the modules that write
//   to the residual stream, R = E[w (h_reference − h) xᵀ], h the stream before the module: W' x makes up for the error of
//   its input (GPTAQ, Qronos) and of the stream. α = ρ = 1 over-fits the calibration text; a half is best. ρ = 0 where
//   norms stand between a module's output and the stream (Gemma).
// - After GPTQ, sweeps of {row scale refit, coordinate descent over the codes}.
// - Compensators, if any, take the leading part of W' − Ŵ at once, so that what follows is quantized behind them.
struct QuantizeOptions {
  Quantizer quantizer = Quantizer::rtn;
  W4Scheme scheme;
  double damping = 0.01;
  double alpha = 0.6, rho = 0.6;
  double outlier_cap = 4.0;
  int sweeps = 2;
  Whitening whitening = Whitening::exact;             ///< of the compensators
  std::int64_t spectrum = 16;                         ///< singular values of errors that are wanted, at least
  bool keep_targets = true;                           ///< whether ModelQuantization::targets is wanted (4 bytes per weight)
  const std::vector<QuantizedLinear>* given = nullptr; ///< 4-bit linears to take as they are (not with gptq)
  /// Where the model's slots are empty: layers are loaded from here when their turn comes, and dropped behind it.
  const ModelWeights* source = nullptr;
};

/// A place for a compensator: modules that share an input and A, or one module.
struct CompensatorSite {
  std::vector<ModuleId> members;
  std::int64_t rank = 0;       ///< 0: measure the spectrum only
  std::int64_t gate_rows = 0;  ///< further rows of A, which only a gate will see
};

/// Its factors.
struct ChainFactors {
  torch::Tensor a;               ///< [rank + gate_rows, in]
  std::vector<torch::Tensor> b;  ///< per member [out, rank]
  torch::Tensor sigma;           ///< [rank + gate_rows]: root mean square of each A x
};

struct ModelQuantization {
  std::vector<QuantizedLinear> linears;   ///< by ModuleId
  std::vector<torch::Tensor> targets;     ///< by ModuleId: W' that rounding aimed at (gptq only, if kept)
  std::vector<ChainFactors> factors;      ///< by site
  std::vector<std::vector<double>> singular_values;  ///< by site: the leading ones of (W' − Ŵ), whitened, falling
  std::vector<double> energies;                      ///< by site: sum of the squares of all of these
};

/// `model`'s slots hold the reference weights at the start, dequantized 4-bit weights (and compensators) at the end, unless
/// options.source has them: then no more than one layer of them is in memory at a time.
/// tokens: [sequences, length] int64 on the model's device; may be undefined for rtn without sites. All sequences pass
/// each layer together, so memory grows with their number (about 40 kB per token for hidden_size 576).
/// With rtn and clip, compensators fit W − Ŵ on the reference's inputs: absorbing upstream errors ruins them (measured).
ModelQuantization quantize_model(TorchModel& model, const QuantizeOptions& options, const std::vector<CompensatorSite>& sites,
                                 const torch::Tensor& tokens);

}  // namespace spear
