#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/checkpoint.h"
#include "io/compensator_file.h"
#include "io/gguf_model.h"
#include "io/gptq_linear.h"
#include "io/hf_config.h"
#include "io/packed_linear.h"
#include "io/safetensors.h"
#include "io/untrusted.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr auto kDenseTypes = {DType::f32, DType::f16, DType::bf16};

/// A config that says "act-order" with no tensor that tells the order would be read wrongly without a word.
void check_order_is_told(const TensorMap& tensors, ModuleId id, const HfConfig& config, const std::string& where) {
  if (!config.quantization || !config.quantization->act_order || config.quantization->scheme.group_size == 0) return;
  const bool packed = has_packed_linear(tensors, id.name());
  if (!packed && !has_gptq_linear(tensors, id.name())) return;
  const std::string name = id.name() + (packed ? ".weight_g_idx" : ".g_idx");
  if (tensors.contains(name)) return;
  throw bad_input("the config says act-order, but no tensor says which group each input is in", where + ": " + name,
                  "get the model again, or correct the config (desc_act, actorder)");
}

LinearWeight take_linear(TensorMap& tensors, ModuleId id, const HfConfig& config, const std::string& where) {
  const std::int64_t rows = out_features(config.model, id.kind());
  const std::int64_t cols = in_features(config.model, id.kind());
  check_order_is_told(tensors, id, config, where);
  if (config.quantization && config.quantization->packing != QuantizationFormat::Packing::compressed_tensors) {
    if (has_gptq_linear(tensors, id.name()))
      return take_gptq_linear(tensors, id.name(), rows, cols, *config.quantization, where);
  } else if (config.quantization && has_packed_linear(tensors, id.name())) {
    return take_packed_linear(tensors, id.name(), rows, cols, config.quantization->scheme, where);
  }
  return take_tensor(tensors, id.name() + ".weight", {rows, cols}, kDenseTypes, where);
}

/// Packers of GPTQ write a bias beside every linear, whether the model has one or not.
bool is_zero_bias(const std::string& name, const Tensor& tensor) {
  if (!name.ends_with("_proj.bias") || !is_floating(tensor.dtype())) return false;
  const auto values = tensor.to_floats();
  return std::all_of(values.begin(), values.end(), [](float v) { return v == 0; });
}

/// A tensor that nobody asked for is something the forward pass would leave out.
void check_leftovers(const TensorMap& tensors, bool tied, bool gptq, const std::string& where) {
  for (const auto& [name, tensor] : tensors) {
    const bool harmless = name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight") ||
                          (gptq && is_zero_bias(name, tensor));
    if (harmless) continue;
    throw bad_input(fmt::format("tensor '{}' is not supported", printable(name)), where,
                    "use a model without adapters, experts and biases that its config does not mention");
  }
}

/// Gemma's files hold what a gain has beyond 1.
Tensor stored_gain(Tensor tensor, const ModelConfig& config) {
  if (!gains_beyond_one(config)) return tensor;
  auto values = tensor.to_floats();
  for (float& v : values) v += 1.0F;
  return Tensor::from_floats(tensor.shape(), values);
}

ModelWeights take_weights(TensorMap tensors, const HfConfig& config, const std::string& where) {
  ModelWeights weights;
  weights.config = config.model;
  const Shape embedding{config.model.vocab_size, config.model.hidden_size};
  const auto take = [&](const std::string& name, const Shape& shape) {
    return take_tensor(tensors, name, shape, kDenseTypes, where);
  };
  weights.embed_tokens = take("model.embed_tokens.weight", embedding);
  if (!config.model.tie_word_embeddings) weights.lm_head = take("lm_head.weight", embedding);
  weights.layers.resize(static_cast<std::size_t>(config.model.num_hidden_layers));
  for (const NormId id : norms_of(config.model)) {
    weights.gain(id) =
        stored_gain(take(id.name(config.model) + ".weight", {norm_size(config.model, id)}), config.model);
  }
  for (int index = 0; index < module_count(config.model); ++index) {
    const ModuleId id{index};
    LinearModule& module = weights.linear(id);
    module.weight = take_linear(tensors, id, config, where);
    if (has_bias(config.model, id.kind())) {
      module.bias = take(id.name() + ".bias", {out_features(config.model, id.kind())});
    }
  }
  const bool gptq = config.quantization && config.quantization->packing == QuantizationFormat::Packing::gptq;
  check_leftovers(tensors, config.model.tie_word_embeddings, gptq, where);
  return weights;
}

/// Embedding and head at min(as shipped, 8 bit). A checkpoint remembers how the original was shipped.
std::int64_t embedding_budget(const ModelWeights& weights, const json& manifest) {
  const std::int64_t int8_bytes = int8_matrix_bytes(weights.config.vocab_size, weights.config.hidden_size);
  std::int64_t bytes =
      std::min<std::int64_t>(int8_bytes, static_cast<std::int64_t>(weights.embed_tokens.bytes().size()));
  if (!weights.lm_head.empty()) {
    bytes += std::min<std::int64_t>(int8_bytes, static_cast<std::int64_t>(weights.lm_head.bytes().size()));
  }
  const auto remembered = manifest.find("embedding_budget_bytes");
  if (remembered == manifest.end() || !remembered->is_number_integer() || *remembered < 0) return bytes;
  return *remembered < bytes ? remembered->get<std::int64_t>() : bytes;
}

const json& manifest_files(const json& manifest, const std::string& where) {
  static const json kNone = json::object();
  const auto found = manifest.find("files");
  if (found == manifest.end()) return kNone;
  for (const json& hash : *found) {
    if (!found->is_object() || !hash.is_string())
      throw bad_input("'files' does not map names to hashes", where, "the file is damaged");
  }
  return *found;
}

}  // namespace

nlohmann::json read_manifest(const fs::path& directory) {
  const fs::path path = directory / "spear.json";
  json manifest = read_json_object(path);
  const auto schema = manifest.find("schema");
  if (schema == manifest.end() || *schema != kManifestSchema) {
    throw bad_input(
        fmt::format("schema {} is unknown (this program knows {})",
                    schema == manifest.end() ? "(none)" : printable(schema->dump(-1, ' ', true)), kManifestSchema),
        path.string(), "use a newer SPEAR");
  }
  manifest_files(manifest, path.string());
  return manifest;
}

std::optional<fs::path> gguf_of_checkpoint(const fs::path& directory) {
  std::error_code ignored;
  const auto has = [&](const char* file) { return fs::exists(directory / file, ignored); };
  // A config.json stands beside safetensors, whatever else lies there.
  if (has("config.json") || !has("spear.json") || !has(kGgufModel)) return std::nullopt;
  return directory / kGgufModel;
}

ModelWeights read_checkpoint(const fs::path& directory) {
  const auto gguf = gguf_of_checkpoint(directory);
  ModelWeights weights = gguf ? read_gguf_weights(GgufFile(*gguf), /*keep_quantized=*/true)
                              : take_weights(read_safetensors_directory(directory), read_hf_directory_config(directory),
                                             directory.string());

  const json manifest = fs::exists(directory / "spear.json") ? read_manifest(directory) : json::object();
  const fs::path compensators = directory / "compensators.safetensors";
  if (fs::exists(compensators)) {
    read_compensators(compensators, weights);
  } else if (manifest_files(manifest, directory.string()).contains(compensators.filename().string())) {
    throw bad_input("the file is missing, but spear.json lists it", compensators.string(),
                    "copy the whole checkpoint directory");
  }
  if (!gguf) weights.embedding_budget_bytes = embedding_budget(weights, manifest);
  weights.validate(directory.string());
  return weights;
}

void verify_checkpoint(const fs::path& directory) {
  const json manifest = read_manifest(directory);
  for (const auto& [name, hash] : manifest_files(manifest, directory.string()).items()) {
    const fs::path path = directory / name;
    if (name.empty() || fs::path(name).filename() != name) {
      throw bad_input(fmt::format("'{}' is not the name of a file beside it", printable(name)),
                      (directory / "spear.json").string(), "the file is damaged");
    }
    const std::string found = sha256_file(path);
    if (found != hash.get<std::string>()) {
      throw bad_input(fmt::format("SHA-256 is {}, spear.json says {}", found, printable(hash.get<std::string>())),
                      path.string(), "the file was changed or damaged; get the checkpoint again");
    }
  }
}

}  // namespace spear
