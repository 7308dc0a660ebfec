#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "io/checkpoint.h"
#include "io/compensator_file.h"
#include "io/hf_config.h"
#include "io/packed_linear.h"
#include "io/safetensors.h"
#include "io/stored_tensors.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

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
    const TensorMap tensors = stored_tensors(weights, scheme.has_value(), put_packed_linear);
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
