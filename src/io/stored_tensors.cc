#include "io/stored_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/hf_config.h"

namespace spear {
namespace {

Tensor store_vector(const Tensor& tensor) {
  if (tensor.dtype() != DType::f32) return tensor;
  const auto values = tensor.as<float>();
  const bool exact = std::all_of(values.begin(), values.end(), [](float v) { return f16_to_f32(f32_to_f16(v)) == v; });
  return exact ? tensor.to(DType::f16) : tensor;
}

/// What the file holds of a gain; where that rounds, reading gives 1 + (gain - 1).
Tensor file_gain(const Tensor& gain, const ModelConfig& config) {
  if (!gains_beyond_one(config)) return gain;
  auto values = gain.to_floats();
  for (float& v : values) v -= 1.0F;
  return Tensor::from_floats(gain.shape(), values);
}

}  // namespace

/// F16 has three more bits of mantissa than BF16 for the same bytes; BF16 only where a value exceeds F16's range.
Tensor store_embedding(const Tensor& tensor) {
  if (tensor.dtype() != DType::f32) return tensor;
  const auto values = tensor.as<float>();
  const bool fits =
      std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(f16_to_f32(f32_to_f16(v))); });
  return tensor.to(fits ? DType::f16 : DType::bf16);
}

TensorMap stored_tensors(const ModelWeights& weights, bool quantized, const PutLinear& put_linear) {
  const auto embedding = [&](const Tensor& tensor) { return quantized ? store_embedding(tensor) : tensor; };
  const auto vector = [&](const Tensor& tensor) { return quantized ? store_vector(tensor) : tensor; };
  TensorMap tensors;
  tensors["model.embed_tokens.weight"] = embedding(weights.embed_tokens);
  if (!weights.lm_head.empty()) tensors["lm_head.weight"] = embedding(weights.lm_head);
  for (const NormId id : norms_of(weights.config)) {
    tensors[id.name(weights.config) + ".weight"] = vector(file_gain(weights.gain(id), weights.config));
  }
  for (int index = 0; index < module_count(weights.config); ++index) {
    const ModuleId id{index};
    const auto& weight = weights.linear(id).weight;
    if (const auto* packed = std::get_if<W4Matrix>(&weight)) {
      put_linear(tensors, id.name(), *packed);
    } else if (const auto* dense = std::get_if<Tensor>(&weight)) {
      tensors[id.name() + ".weight"] = *dense;
    } else {
      throw usage_error(
          fmt::format("a linear in {}, which safetensors cannot hold", std::get<BlockMatrix>(weight).type->name),
          id.name(), "keep the GGUF file, or export with --format gguf");
    }
    const Tensor& bias = weights.linear(id).bias;
    if (!bias.empty()) tensors[id.name() + ".bias"] = vector(bias);
  }
  return tensors;
}

void require_plain_stream(const ModelConfig& config) {
  if (!config.rotated_stream) return;
  throw usage_error("the model's residual stream is rotated, which this format cannot say", "rotated_stream",
                    "fold the rotation into embedding and head first (spear export does)");
}

}  // namespace spear
