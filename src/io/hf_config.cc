#include "io/hf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/hf_fields.h"
#include "io/hf_rope.h"
#include "io/quantization_config.h"
#include "io/untrusted.h"

namespace spear {
namespace {

using nlohmann::json;
using namespace hf;  // NOLINT: the fields of config.json

/// Defaults of transformers' configuration classes, where families differ.
struct Family {
  const char* model_type;
  const char* architecture;
  std::int64_t key_value_heads;  ///< 0: as many as heads
  std::int64_t head_dim;         ///< 0: hidden_size / heads
  std::int64_t max_position_embeddings;
  double rope_theta;
  bool tied;
};
constexpr Family kFamilies[] = {{"llama", "LlamaForCausalLM", 0, 0, 2048, 1e4, false},
                                {"mistral", "MistralForCausalLM", 8, 0, 131072, 1e4, false},
                                {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768, 1e4, false},
                                {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768, 1e4, false},
                                {"gemma3_text", "Gemma3ForCausalLM", 4, 256, 131072, 1e6, true}};

// What makes other readers refuse a model whose stream is rotated, which they would run without rotating.
constexpr const char *kRotated = "spear_stream_rotation", *kRotation = "dct-hadamard/1";
constexpr const char *kTypePrefix = "spear_", *kArchitecturePrefix = "SpearRotated";

/// The config without its rotation, and whether it has one.
std::pair<json, bool> without_rotation(const json& config, const std::string& where) {
  const json* rotation = find(config, kRotated);
  if (rotation == nullptr) return {config, false};
  if (*rotation != kRotation) throw unsupported(kRotated, *rotation, where);
  json plain = config;
  plain.erase(kRotated);
  const auto strip = [](json& value, std::string_view prefix) {
    if (!value.is_string() || !value.get_ref<const std::string&>().starts_with(prefix)) return;
    value = value.get_ref<const std::string&>().substr(prefix.size());
  };
  strip(plain["model_type"], kTypePrefix);
  if (auto& names = plain["architectures"]; names.is_array() && names.size() == 1) strip(names[0], kArchitecturePrefix);
  return {std::move(plain), true};
}

const Family& family_of(const json& config, const std::string& where) {
  const json* type = find(config, "model_type");
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const Family& f) { return type != nullptr && *type == f.model_type; });
  if (family == std::end(kFamilies)) {
    throw bad_input(fmt::format("architecture {} is not supported",
                                type == nullptr ? "(none named)" : printable(type->dump(-1, ' ', true))),
                    where, "use a text model of the families llama, mistral, qwen2, qwen3 or gemma3_text");
  }
  const json* architectures = find(config, "architectures");
  if (architectures != nullptr && *architectures != json::array({family->architecture})) {
    throw unsupported("architectures", *architectures, where);
  }
  return *family;
}

/// Options that change results unless they have this value, in the families that know them and in their relatives.
void check_neutral_options(const json& config, const std::string& where) {
  for (const char* key : {"qkv_bias", "use_qk_norm", "qk_layernorm", "use_mrope", "attention_sinks", "parallel_attn",
                          "use_parallel_residual", "add_cross_attention", "use_bidirectional_attention"}) {
    if (boolean_or(config, key, false, where)) throw unsupported(key, config[key], where);
  }
  for (const char* key : {"partial_rotary_factor", "rotary_pct", "embedding_multiplier", "residual_multiplier",
                          "logits_scaling", "logit_scale"}) {
    if (real_or(config, key, 1.0, where) != 1.0) throw unsupported(key, config[key], where);
  }
  for (const char* key : {"attention_multiplier", "final_logit_softcapping", "attn_logit_softcapping", "no_rope_layers",
                          "attention_chunk_size", "clip_qkv", "num_local_experts", "num_experts"}) {
    if (const json* value = find(config, key)) throw unsupported(key, *value, where);
  }
}

/// Options that other families have: this one's model ignores them in transformers, its file says otherwise.
void check_foreign_options(const json& config, std::initializer_list<const char*> keys, const std::string& where) {
  for (const char* key : keys) {
    const json* value = find(config, key);
    if (value != nullptr && *value != false) throw unsupported(key, *value, where);
  }
}

HiddenAct parse_activation(const json& config, const char* key, HiddenAct fallback, const std::string& where) {
  const json* act = find(config, key);
  if (act == nullptr) return fallback;
  if (*act == "silu" || *act == "swish") return HiddenAct::silu;
  if (*act == "gelu_pytorch_tanh" || *act == "gelu_new") return HiddenAct::gelu_tanh;
  throw unsupported(key, *act, where);
}

/// Which layers attend within the window, by layer_types or else by `is_local`.
template <class IsLocal>
void parse_layer_types(const json& config, ModelConfig& model, IsLocal is_local, const std::string& where) {
  const json* types = find(config, "layer_types");
  if (types != nullptr && !(types->is_array() && static_cast<std::int64_t>(types->size()) == model.num_hidden_layers)) {
    throw bad_input("layer_types does not name a type for every layer", where);
  }
  for (std::int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    const json* type = types == nullptr ? nullptr : &(*types)[static_cast<std::size_t>(layer)];
    if (type != nullptr && *type != "full_attention" && *type != "sliding_attention") {
      throw unsupported("layer_types", *type, where);
    }
    model.local_layers.push_back(type == nullptr ? is_local(layer) : *type == "sliding_attention");
  }
  const auto& local = model.local_layers;
  if (std::find(local.begin(), local.end(), true) == local.end()) {
    model.local_layers.clear();
  } else if (model.sliding_window < 1) {
    throw bad_input("layer_types: layers with sliding attention, but no sliding_window", where,
                    "use the config.json of the original model");
  }
}

/// sliding_window and the layers it holds for. Absent is not null here.
void parse_windows(const json& config, ModelConfig& model, const std::string& where) {
  const auto window = [&]() -> std::int64_t {
    if (!config.contains("sliding_window")) return 4096;
    const json* value = find(config, "sliding_window");
    const std::int64_t tokens = value == nullptr ? 0 : integer(*value, "sliding_window", where);
    if (value != nullptr && tokens < 1) throw bad_input(fmt::format("sliding_window = {}", tokens), where);
    return tokens;
  };
  if (model.model_type == "llama") {
    check_foreign_options(config, {"sliding_window", "use_sliding_window"}, where);
    parse_layer_types(config, model, [](std::int64_t) { return false; }, where);
  } else if (model.model_type == "mistral") {
    check_foreign_options(config, {"use_sliding_window", "layer_types"}, where);
    model.sliding_window = window();
    if (model.sliding_window > 0) model.local_layers.assign(static_cast<std::size_t>(model.num_hidden_layers), true);
  } else if (model.model_type == "gemma3_text") {
    check_foreign_options(config, {"use_sliding_window"}, where);
    model.sliding_window = window();
    std::int64_t pattern = integer_or(config, "sliding_window_pattern", 6, where);
    pattern = integer_or(config, "_sliding_window_pattern", pattern, where);
    if (pattern < 1) throw bad_input(fmt::format("sliding_window_pattern = {}", pattern), where);
    parse_layer_types(config, model, [&](std::int64_t layer) { return (layer + 1) % pattern != 0; }, where);
  } else {
    const bool used = boolean_or(config, "use_sliding_window", false, where);
    model.sliding_window = used ? window() : 0;
    const std::int64_t full_layers = integer_or(config, "max_window_layers", 28, where);
    parse_layer_types(config, model,
                      [&](std::int64_t layer) { return model.sliding_window > 0 && layer >= full_layers; }, where);
  }
  if (model.local_layers.empty()) model.sliding_window = 0;
}

void parse_family(const json& config, ModelConfig& model, const std::string& where) {
  const std::string& type = model.model_type;
  const bool gemma = type == "gemma3_text";
  if (type == "mistral" || type == "qwen2") check_foreign_options(config, {"attention_bias"}, where);
  if (type != "llama") check_foreign_options(config, {"mlp_bias"}, where);
  if (!gemma) {
    check_foreign_options(config, {"query_pre_attn_scalar", "hidden_activation", "rope_local_base_freq",
                                   "sliding_window_pattern", "_sliding_window_pattern", "embedding_scale"}, where);
  }
  const bool attention_bias = boolean_or(config, "attention_bias", false, where);
  model.qkv_bias = attention_bias || type == "qwen2";
  model.o_bias = attention_bias;
  model.mlp_bias = boolean_or(config, "mlp_bias", false, where);
  model.qk_norm = gemma || type == "qwen3";
  model.output_norms = gemma;
  model.hidden_act = parse_activation(config, "hidden_act", gemma ? HiddenAct::gelu_tanh : HiddenAct::silu, where);
  if (!gemma) return;
  if (model.hidden_act != HiddenAct::gelu_tanh) throw unsupported("hidden_act", config["hidden_act"], where);
  model.hidden_act = parse_activation(config, "hidden_activation", HiddenAct::gelu_tanh, where);
  model.query_pre_attn_scalar = real_or(config, "query_pre_attn_scalar", 256, where);
  if (!(model.query_pre_attn_scalar > 0)) throw bad_input("query_pre_attn_scalar is not positive", where);
  // The model multiplies by the root rounded to its own type; a checkpoint of ours says by what it was.
  const json* dtype = find(config, config.contains("dtype") ? "dtype" : "torch_dtype");
  auto scale = static_cast<float>(std::sqrt(static_cast<double>(model.hidden_size)));
  if (dtype != nullptr && *dtype == "bfloat16") scale = bf16_to_f32(f32_to_bf16(scale));
  if (dtype != nullptr && *dtype == "float16") scale = f16_to_f32(f32_to_f16(scale));
  model.embedding_scale = real_or(config, "embedding_scale", scale, where);
}

/// Token ids of eos_token_id: a number, a list, null or absent.
std::vector<std::int64_t> parse_eos_token_ids(const json& config, const std::string& where) {
  std::vector<std::int64_t> ids;
  const json* eos = find(config, "eos_token_id");
  if (eos == nullptr) return ids;
  for (const json& id : eos->is_array() ? *eos : json::array({*eos})) ids.push_back(integer(id, "eos_token_id", where));
  return ids;
}

/// In the words of old readers and of new ones (layer_types).
void put_windows(json& config, const ModelConfig& model) {
  const bool any = model.sliding_window > 0;
  config["sliding_window"] = any ? json(model.sliding_window) : json(nullptr);
  if (model.model_type == "mistral") return;
  json types = json::array();
  std::int64_t full_layers = model.num_hidden_layers;  // before the first local one
  for (std::int64_t layer = model.num_hidden_layers; layer-- > 0;) {
    if (model.is_local(layer)) full_layers = layer;
  }
  for (std::int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    types.push_back(model.is_local(layer) ? "sliding_attention" : "full_attention");
  }
  config["layer_types"] = std::move(types);
  if (model.model_type == "gemma3_text") return;
  config["use_sliding_window"] = any;
  config["max_window_layers"] = full_layers;
}

}  // namespace

HfConfig parse_hf_config(const json& written, const std::string& where) {
  const auto plain = without_rotation(written, where);
  const json& config = plain.first;
  const Family& family = family_of(config, where);
  check_neutral_options(config, where);
  HfConfig result;
  ModelConfig& model = result.model;
  const auto required = [&](const char* key) { return integer_or(config, key, std::nullopt, where); };
  model.model_type = family.model_type;
  model.hidden_size = required("hidden_size");
  model.intermediate_size = required("intermediate_size");
  model.num_hidden_layers = required("num_hidden_layers");
  model.num_attention_heads = required("num_attention_heads");
  model.vocab_size = required("vocab_size");
  const bool null_heads = config.contains("num_key_value_heads") || family.key_value_heads == 0;
  model.num_key_value_heads = integer_or(config, "num_key_value_heads",
                                         null_heads ? model.num_attention_heads : family.key_value_heads, where);
  const bool divides = model.num_attention_heads > 0 && model.hidden_size % model.num_attention_heads == 0;
  std::optional<std::int64_t> head_dim;
  if (family.head_dim > 0) head_dim = family.head_dim;
  if (family.head_dim == 0 && divides) head_dim = model.hidden_size / model.num_attention_heads;
  model.head_dim = integer_or(config, "head_dim", head_dim, where);
  model.max_position_embeddings = integer_or(config, "max_position_embeddings", family.max_position_embeddings, where);
  model.rms_norm_eps = real_or(config, "rms_norm_eps", 1e-6, where);
  model.tie_word_embeddings = boolean_or(config, "tie_word_embeddings", family.tied, where);
  model.bos_token_id = integer_or(config, "bos_token_id", -1, where);
  model.eos_token_ids = parse_eos_token_ids(config, where);
  model.validate(where);  // before a list as long as it has layers is made
  parse_rope(config, family.rope_theta, model, where);
  parse_windows(config, model, where);
  parse_family(config, model, where);
  model.rotated_stream = plain.second;
  model.validate(where);
  if (const json* quantization = find(config, "quantization_config")) {
    result.quantization = parse_quantization_config(*quantization, where);
  }
  return result;
}

HfConfig read_hf_directory_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  HfConfig config = parse_hf_config(read_json_object(path), path.string());
  const auto generation = directory / "generation_config.json";
  if (!std::filesystem::exists(generation)) return config;
  auto& ids = config.model.eos_token_ids;
  for (const std::int64_t id : parse_eos_token_ids(read_json_object(generation), generation.string())) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return config;
}

bool gains_beyond_one(const ModelConfig& model) { return model.model_type == "gemma3_text"; }

json make_hf_config(const ModelConfig& model, DType dtype) {
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const Family& f) { return model.model_type == f.model_type; });
  if (family == std::end(kFamilies)) throw failed("no family is called " + model.model_type);
  const bool gemma = model.model_type == "gemma3_text";
  json config = {
      {"architectures", {family->architecture}},
      {"model_type", family->model_type},
      {gemma ? "hidden_activation" : "hidden_act",
       model.hidden_act == HiddenAct::silu ? "silu" : "gelu_pytorch_tanh"},
      {"hidden_size", model.hidden_size},
      {"intermediate_size", model.intermediate_size},
      {"num_hidden_layers", model.num_hidden_layers},
      {"num_attention_heads", model.num_attention_heads},
      {"num_key_value_heads", model.num_key_value_heads},
      {"head_dim", model.head_dim},
      {"vocab_size", model.vocab_size},
      {"max_position_embeddings", model.max_position_embeddings},
      {"rms_norm_eps", model.rms_norm_eps},
      {"rope_theta", model.rope_theta},
      {"rope_scaling", make_rope_scaling(model.rope_scaling)},
      {"attention_bias", model.o_bias},
      {"mlp_bias", model.mlp_bias},
      {"tie_word_embeddings", model.tie_word_embeddings},
      {"bos_token_id", model.bos_token_id < 0 ? json(nullptr) : json(model.bos_token_id)},
      {"torch_dtype", dtype == DType::f16    ? "float16"
                      : dtype == DType::bf16 ? "bfloat16"
                                             : "float32"},
      {"use_cache", true},
  };
  if (gemma) {
    config["rope_local_base_freq"] = model.rope_local_theta;
    config["query_pre_attn_scalar"] = model.query_pre_attn_scalar;
    config["embedding_scale"] = model.embedding_scale;
  }
  if (model.model_type != "llama") put_windows(config, model);
  if (model.rotated_stream) {
    config[kRotated] = kRotation;
    config["model_type"] = std::string(kTypePrefix) + family->model_type;
    config["architectures"] = {std::string(kArchitecturePrefix) + family->architecture};
  }
  const auto& eos = model.eos_token_ids;
  config["eos_token_id"] = eos.empty() ? json(nullptr) : eos.size() == 1 ? json(eos[0]) : json(eos);
  return config;
}

}  // namespace spear
