// Quantizes all linears of a model, module after module, each on the inputs that the already quantized prefix gives it.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "quant/gptq.h"
#include "torch/torch_model.h"

namespace spear {

enum class Quantizer { rtn, clip, gptq };

struct QuantizeOptions {
  Quantizer quantizer = Quantizer::rtn;
  W4Scheme scheme;
  GptqOptions gptq;
  bool absorb = true;  ///< gptq: targets make up for what the quantized prefix got wrong (below)
};

// Two things beside plain GPTQ, each measured (docs/algorithm.md):
// - Token weights min(1, 4 median(n) / n_t), n_t = |x_t|² of the reference: attention sinks and other outlier tokens
//   otherwise own the Hessian. For o_proj and down_proj also of the residual stream.
// - Targets W' = W + (W (C − H) + R)(H + λI)⁻¹ with C = E[x_reference xᵀ] and, for the modules that write to the
//   residual stream, R = E[(h_reference − h) xᵀ], h the stream before the module: W' x then makes up for the error of
//   the input and of the stream (GPTAQ, Qronos; the stream term is ours).


struct ModelQuantization {
  std::vector<QuantizedLinear> linears;       ///< by ModuleId
  std::vector<torch::Tensor> before_rounding; ///< by ModuleId, float32 weights as rounding met them (gptq only)
  std::vector<double> relative_error;         ///< by ModuleId: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ); for rtn: without H
};

/// `model`'s slots hold the reference weights at the start and dequantized 4-bit weights at the end.
/// tokens: [sequences, length] int64 on the model's device; may be undefined for rtn. All sequences pass each layer
/// together, so memory grows with their number (about 40 kB per token for hidden_size 576).
ModelQuantization quantize_model(TorchModel& model, const QuantizeOptions& options, const torch::Tensor& tokens);

/// Mean x xᵀ of the inputs of every input group (by ModuleId of the group's first member), float32, on a forward pass
/// over `tokens` in pieces of `batch` sequences.
std::vector<torch::Tensor> input_moments(TorchModel& model, const torch::Tensor& tokens, std::int64_t batch);

}  // namespace spear
