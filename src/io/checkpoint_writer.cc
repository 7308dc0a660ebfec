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
#include "io/quantization_config.h"
#include "io/safetensors.h"
#include "io/stored_tensors.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct LinearSurvey {
  std::optional<W4Scheme> scheme;  ///< of the packed linears; nothing when all are dense
  std::vector<std::string> dense;  ///< names, when some are packed
  bool act_order = false;          ///< some linear's groups do not follow its inputs
};

LinearSurvey survey_linears(const ModelWeights& weights) {
  LinearSurvey survey;
  auto& [scheme, dense, act_order] = survey;
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
      act_order |= !packed->group_index.empty();
    }
  }
  if (!scheme) dense.clear();
  return survey;
}

bool any_compensator(const ModelWeights& weights) {
  return std::any_of(weights.layers.begin(), weights.layers.end(), [](const LayerWeights& layer) {
    return std::any_of(layer.linears.begin(), layer.linears.end(),
                       [](const LinearModule& module) { return module.compensator.has_value(); });
  });
}

void write_compensators_beside(const fs::path& directory, const ModelWeights& weights, json& hashes) {
  if (!any_compensator(weights)) return;
  write_compensators(directory / "compensators.safetensors", weights);
  hashes["compensators.safetensors"] = sha256_file(directory / "compensators.safetensors");
}

void write_manifest(const fs::path& directory, json manifest, const ModelWeights& weights, json hashes) {
  manifest["schema"] = kManifestSchema;
  manifest["embedding_budget_bytes"] = weights.embedding_budget_bytes;
  manifest["files"] = std::move(hashes);
  write_file_atomic(directory / "spear.json", manifest.dump(2) + "\n");
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
  const auto [scheme, dense, act_order] = survey_linears(weights);
  json hashes = json::object();
  const auto write_text = [&](const char* name, const std::string& text) {
    if (text.empty()) return;
    write_file_atomic(directory / name, text);
    hashes[name] = sha256_hex(text);
  };
  std::string config;
  {
    const TensorMap tensors =
        stored_tensors(weights, scheme.has_value(),
                       [regrouped = act_order](TensorMap& map, const std::string& module, const W4Matrix& matrix) {
                         put_packed_linear(map, module, matrix, regrouped);
                       });
    const DType dtype = tensors.at("model.embed_tokens.weight").dtype();
    json described = make_hf_config(weights.config, dtype);
    if (scheme) described["quantization_config"] = make_quantization_config(*scheme, dense, act_order);
    config = described.dump(2) + "\n";
    write_safetensors(directory / "model.safetensors", tensors, {{"format", "pt"}});
    hashes["model.safetensors"] = sha256_file(directory / "model.safetensors");
  }
  write_compensators_beside(directory, weights, hashes);
  write_text("tokenizer.json", files.tokenizer_json);
  write_text("tokenizer_config.json", files.tokenizer_config_json);
  write_text("generation_config.json", files.generation_config_json);
  hashes["config.json"] = sha256_hex(config);
  write_manifest(directory, std::move(manifest), weights, std::move(hashes));
  write_file_atomic(directory / "config.json", config);  // last: without it nothing takes the directory for a model
}

void write_gguf_checkpoint(const fs::path& directory, const fs::path& gguf, const std::string& sha256,
                           const ModelWeights& weights, json manifest) {
  std::error_code failure;
  if (!fs::copy_file(gguf, directory / kGgufModel, failure)) {
    throw out_of_resources("cannot copy the GGUF file: " + failure.message(), (directory / kGgufModel).string(),
                           "free disk space, or choose another --out");
  }
  json hashes = {{kGgufModel, sha256_file(directory / kGgufModel)}};
  if (hashes[kGgufModel] != sha256) {
    throw bad_input("the file is no longer the one that was read at the start", gguf.string(),
                    "leave it alone while spear runs, and start again");
  }
  write_compensators_beside(directory, weights, hashes);
  write_manifest(directory, std::move(manifest), weights, std::move(hashes));
}

}  // namespace spear
