#include "io/hf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/quantization_config.h"
#include "io/untrusted.h"

namespace spear {
namespace {

using nlohmann::json;

Error unsupported(const std::string& option, const json& value, const std::string& where) {
  return bad_input(fmt::format("option {} = {} is not supported", option, printable(value.dump(-1, ' ', true))), where,
                   "use a model without it: ignoring the option would change the results");
}

/// Absent and null are the same to Hugging Face.
const json* find(const json& config, const char* key) {
  const auto found = config.find(key);
  return found == config.end() || found->is_null() ? nullptr : &*found;
}

std::int64_t integer(const json& value, const char* key, const std::string& where) {
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX)) {
    throw bad_input(fmt::format("{} = {} is not an integer", key, printable(value.dump(-1, ' ', true))), where);
  }
  return value.get<std::int64_t>();
}

std::int64_t integer_or(const json& config, const char* key, std::optional<std::int64_t> fallback,
                        const std::string& where) {
  if (const json* value = find(config, key)) return integer(*value, key, where);
  if (!fallback) throw bad_input(fmt::format("{} is missing", key), where, "use the config.json of the original model");
  return *fallback;
}

double real_or(const json& config, const char* key, double fallback, const std::string& where) {
  const json* value = find(config, key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) throw bad_input(fmt::format("{} is not a number", key), where);
  return value->get<double>();
}

bool boolean_or(const json& config, const char* key, bool fallback, const std::string& where) {
  const json* value = find(config, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) throw bad_input(fmt::format("{} is not true or false", key), where);
  return value->get<bool>();
}

void check_architecture(const json& config, const std::string& where) {
  const json* type = find(config, "model_type");
  if (type == nullptr || *type != "llama") {
    throw bad_input(fmt::format("architecture {} is not supported",
                                type == nullptr ? "(none named)" : printable(type->dump(-1, ' ', true))),
                    where, "use a model of the llama architecture");
  }
  const json* architectures = find(config, "architectures");
  if (architectures != nullptr && *architectures != json::array({"LlamaForCausalLM"})) {
    throw unsupported("architectures", *architectures, where);
  }
}

/// Options of Llama configs, and of configs derived from them, that change results unless they have this value.
void check_neutral_options(const json& config, const std::string& where) {
  for (const char* key :
       {"attention_bias", "mlp_bias", "qkv_bias", "use_qk_norm", "qk_norm", "qk_layernorm", "use_mrope",
        "use_sliding_window", "attention_sinks", "parallel_attn", "use_parallel_residual", "add_cross_attention"}) {
    if (boolean_or(config, key, false, where)) throw unsupported(key, config[key], where);
  }
  for (const char* key : {"partial_rotary_factor", "rotary_pct", "embedding_multiplier", "residual_multiplier",
                          "logits_scaling", "logit_scale"}) {
    if (real_or(config, key, 1.0, where) != 1.0) throw unsupported(key, config[key], where);
  }
  for (const char* key : {"attention_multiplier", "final_logit_softcapping", "attn_logit_softcapping", "no_rope_layers",
                          "attention_chunk_size", "clip_qkv", "num_local_experts", "num_experts", "sliding_window"}) {
    if (const json* value = find(config, key)) throw unsupported(key, *value, where);
  }
  if (const json* act = find(config, "hidden_act"); act != nullptr && *act != "silu" && *act != "swish") {
    throw unsupported("hidden_act", *act, where);
  }
  if (const json* layers = find(config, "layer_types")) {
    for (const json& layer : *layers) {
      if (layer != "full_attention") throw unsupported("layer_types", layer, where);
    }
  }
}

/// rope_theta, from the top level or, as newer files have it, from rope_parameters. Any scaling is refused.
double parse_rope(const json& config, const std::string& where) {
  double theta = real_or(config, "rope_theta", 10000.0, where);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* rope = find(config, key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) throw unsupported(key, *rope, where);
    for (const auto& [field, value] : rope->items()) {
      const bool type = field == "rope_type" || field == "type";
      if (field == "rope_theta") {
        theta = real_or(*rope, "rope_theta", theta, where);
      } else if (!(type && value == "default") && !(field == "partial_rotary_factor" && value == 1.0)) {
        throw unsupported(fmt::format("{}.{}", key, printable(field)), value, where);
      }
    }
  }
  return theta;
}

/// Token ids of eos_token_id: a number, a list, null or absent.
std::vector<std::int64_t> parse_eos_token_ids(const json& config, const std::string& where) {
  std::vector<std::int64_t> ids;
  const json* eos = find(config, "eos_token_id");
  if (eos == nullptr) return ids;
  for (const json& id : eos->is_array() ? *eos : json::array({*eos})) ids.push_back(integer(id, "eos_token_id", where));
  return ids;
}

}  // namespace

HfConfig parse_hf_config(const json& config, const std::string& where) {
  check_architecture(config, where);
  check_neutral_options(config, where);
  HfConfig result;
  ModelConfig& model = result.model;
  const auto required = [&](const char* key) { return integer_or(config, key, std::nullopt, where); };
  model.hidden_size = required("hidden_size");
  model.intermediate_size = required("intermediate_size");
  model.num_hidden_layers = required("num_hidden_layers");
  model.num_attention_heads = required("num_attention_heads");
  model.vocab_size = required("vocab_size");
  // Defaults from here on are those of transformers' LlamaConfig.
  model.num_key_value_heads = integer_or(config, "num_key_value_heads", model.num_attention_heads, where);
  const bool divides = model.num_attention_heads > 0 && model.hidden_size % model.num_attention_heads == 0;
  model.head_dim = integer_or(
      config, "head_dim", divides ? std::optional(model.hidden_size / model.num_attention_heads) : std::nullopt, where);
  model.max_position_embeddings = integer_or(config, "max_position_embeddings", 2048, where);
  model.rms_norm_eps = real_or(config, "rms_norm_eps", 1e-6, where);
  model.rope_theta = parse_rope(config, where);
  model.tie_word_embeddings = boolean_or(config, "tie_word_embeddings", false, where);
  model.bos_token_id = integer_or(config, "bos_token_id", -1, where);
  model.eos_token_ids = parse_eos_token_ids(config, where);
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

json make_hf_config(const ModelConfig& model, DType dtype, const std::optional<W4Scheme>& quantization,
                    const std::vector<std::string>& ignored) {
  json config = {
      {"architectures", {"LlamaForCausalLM"}},
      {"model_type", "llama"},
      {"hidden_act", "silu"},
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
      {"rope_scaling", nullptr},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"tie_word_embeddings", model.tie_word_embeddings},
      {"bos_token_id", model.bos_token_id < 0 ? json(nullptr) : json(model.bos_token_id)},
      {"torch_dtype", dtype == DType::f16    ? "float16"
                      : dtype == DType::bf16 ? "bfloat16"
                                             : "float32"},
      {"use_cache", true},
  };
  const auto& eos = model.eos_token_ids;
  config["eos_token_id"] = eos.empty() ? json(nullptr) : eos.size() == 1 ? json(eos[0]) : json(eos);
  if (quantization) config["quantization_config"] = make_quantization_config(*quantization, ignored);
  return config;
}

}  // namespace spear
