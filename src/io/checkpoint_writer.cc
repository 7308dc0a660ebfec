#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "io/checkpoint.h"
#include "io/compensator_file.h"
#include "io/hf_config.h"
#include "io/packed_linear.h"
#include "io/safetensors.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// F16 has three more bits of mantissa than BF16 for the same bytes; BF16 only where a value exceeds F16's range.
Tensor store_embedding(const Tensor& tensor) {
  if (tensor.dtype() != DType::f32) return tensor;
  const auto values = tensor.as<float>();
  const bool fits =
      std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(f16_to_f32(f32_to_f16(v))); });
  return tensor.to(fits ? DType::f16 : DType::bf16);
}

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

/// The scheme of the packed linears (nothing when all are dense) and the names of the dense ones.
std::pair<std::optional<W4Scheme>, std::vector<std::string>> survey_linears(const ModelWeights& weights) {
  std::optional<W4Scheme> scheme;
  std::vector<std::string> dense;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const auto* packed = std::get_if<W4Matrix>(&weights.linear({index}).weight);
    if (packed == nullptr) {
      dense.push_back(ModuleId{index}.name());
    } else if (scheme.value_or(packed->scheme) != packed->scheme) {
      throw failed(fmt::format("scheme {} beside {}: a checkpoint has one scheme", to_string(packed->scheme),
                               to_string(*scheme)),
                   ModuleId{index}.name());
    } else {
      scheme = packed->scheme;
    }
  }
  return {scheme, scheme ? dense : std::vector<std::string>{}};
}

/// Tensors by Hugging Face name; views of `weights` where nothing is converted.
TensorMap stored_tensors(const ModelWeights& weights, bool quantized) {
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
      put_packed_linear(tensors, id.name(), *packed);
    } else {
      tensors[id.name() + ".weight"] = std::get<Tensor>(weight);
    }
    const Tensor& bias = weights.linear(id).bias;
    if (!bias.empty()) tensors[id.name() + ".bias"] = vector(bias);
  }
  return tensors;
}

bool any_compensator(const ModelWeights& weights) {
  return std::any_of(weights.layers.begin(), weights.layers.end(), [](const LayerWeights& layer) {
    return std::any_of(layer.linears.begin(), layer.linears.end(),
                       [](const LinearModule& module) { return module.compensator.has_value(); });
  });
}

}  // namespace

ModelWeights with_stored_embeddings(ModelWeights weights) {
  weights.embed_tokens = store_embedding(weights.embed_tokens);
  if (!weights.lm_head.empty()) weights.lm_head = store_embedding(weights.lm_head);
  if (!gains_beyond_one(weights.config)) return weights;
  for (const NormId id : norms_of(weights.config)) {
    auto values = weights.gain(id).to_floats();
    for (float& v : values) v = 1.0F + (v - 1.0F);
    weights.gain(id) = Tensor::from_floats(weights.gain(id).shape(), values);
  }
  return weights;
}

void write_checkpoint(const fs::path& directory, const ModelWeights& weights, const CheckpointFiles& files,
                      json manifest) {
  weights.validate("the model to be written");
  const auto [scheme, dense] = survey_linears(weights);
  json hashes = json::object();
  const auto write_text = [&](const char* name, const std::string& text) {
    if (text.empty()) return;
    write_file_atomic(directory / name, text);
    hashes[name] = sha256_hex(text);
  };
  std::string config;
  {
    const TensorMap tensors = stored_tensors(weights, scheme.has_value());
    const DType dtype = tensors.at("model.embed_tokens.weight").dtype();
    config = make_hf_config(weights.config, dtype, scheme, dense).dump(2) + "\n";
    write_safetensors(directory / "model.safetensors", tensors, {{"format", "pt"}});
    hashes["model.safetensors"] = sha256_file(directory / "model.safetensors");
  }
  if (any_compensator(weights)) {
    write_compensators(directory / "compensators.safetensors", weights);
    hashes["compensators.safetensors"] = sha256_file(directory / "compensators.safetensors");
  }
  write_text("tokenizer.json", files.tokenizer_json);
  write_text("tokenizer_config.json", files.tokenizer_config_json);
  write_text("generation_config.json", files.generation_config_json);
  manifest["schema"] = kManifestSchema;
  manifest["embedding_budget_bytes"] = weights.embedding_budget_bytes;
  hashes["config.json"] = sha256_hex(config);
  manifest["files"] = std::move(hashes);
  write_file_atomic(directory / "spear.json", manifest.dump(2) + "\n");
  write_file_atomic(directory / "config.json", config);  // last: without it nothing takes the directory for a model
}

}  // namespace spear
