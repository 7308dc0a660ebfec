#include "io/hf_rope.h"

#include <initializer_list>

#include "io/hf_fields.h"

namespace spear {
namespace {

using namespace hf;  // NOLINT: the fields of config.json

/// One set of rotary parameters: rope_scaling, rope_parameters or a layer type's part of it.
void parse_parameters(const json& rope, const std::string& key, double& theta, RopeScaling& scaling,
                const std::string& where) {
  if (!rope.is_object()) throw unsupported(key, rope, where);
  std::string type = "default";
  for (const auto& [field, value] : rope.items()) {
    const std::string option = fmt::format("{}.{}", key, printable(field));
    if (value.is_null()) continue;
    if (field == "rope_type" || field == "type") {
      if (value != "default" && value != "linear" && value != "llama3") {
        throw bad_input(fmt::format("option {} = {} is not supported", option, printable(value.dump(-1, ' ', true))),
                        where, "use a model whose rotary embedding is plain or stretched by 'linear' or 'llama3'");
      }
      if (type == "default") type = value.get<std::string>();
    } else if (field == "rope_theta") {
      theta = real_or(rope, "rope_theta", theta, where);
    } else if (field == "factor") {
      scaling.factor = real_or(rope, "factor", 1, where);
    } else if (field == "low_freq_factor") {
      scaling.low_freq_factor = real_or(rope, "low_freq_factor", 1, where);
    } else if (field == "high_freq_factor") {
      scaling.high_freq_factor = real_or(rope, "high_freq_factor", 4, where);
    } else if (field == "original_max_position_embeddings") {
      scaling.original_max_position_embeddings = integer(value, option.c_str(), where);
    } else if (!(field == "partial_rotary_factor" && value == 1.0)) {
      throw unsupported(option, value, where);
    }
  }
  const auto need = [&](std::initializer_list<const char*> fields) {
    for (const char* field : fields) {
      if (find(rope, field) == nullptr) throw bad_input(fmt::format("{}.{} is missing", key, field), where);
    }
  };
  if (type == "linear") {
    need({"factor"});
    scaling.type = RopeScaling::Type::linear;
  } else if (type == "llama3") {
    need({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
    scaling.type = RopeScaling::Type::llama3;
  } else {
    scaling = {};
  }
}

}  // namespace

void parse_rope(const json& config, double default_theta, ModelConfig& model, const std::string& where) {
  const bool gemma = model.model_type == "gemma3_text";
  model.rope_theta = real_or(config, "rope_theta", default_theta, where);
  if (gemma) model.rope_local_theta = real_or(config, "rope_local_base_freq", 10000.0, where);
  const json* parameters = find(config, "rope_parameters");
  if (parameters != nullptr && gemma) {
    if (!parameters->is_object()) throw unsupported("rope_parameters", *parameters, where);
    for (const auto& [layers, rope] : parameters->items()) {
      RopeScaling none;
      if (layers == "full_attention") {
        parse_parameters(rope, "rope_parameters.full_attention", model.rope_theta, model.rope_scaling, where);
      } else if (layers == "sliding_attention") {
        parse_parameters(rope, "rope_parameters.sliding_attention", model.rope_local_theta, none, where);
      } else {
        throw unsupported("rope_parameters." + printable(layers), rope, where);
      }
      if (none.type != RopeScaling::Type::none) throw unsupported("rope_parameters.sliding_attention", rope, where);
    }
  } else if (parameters != nullptr) {
    parse_parameters(*parameters, "rope_parameters", model.rope_theta, model.rope_scaling, where);
  }
  if (const json* scaling = find(config, "rope_scaling")) {
    parse_parameters(*scaling, "rope_scaling", model.rope_theta, model.rope_scaling, where);
  }
}

json make_rope_scaling(const RopeScaling& scaling) {
  switch (scaling.type) {
    case RopeScaling::Type::none: return nullptr;
    case RopeScaling::Type::linear: return {{"rope_type", "linear"}, {"factor", scaling.factor}};
    case RopeScaling::Type::llama3: break;
  }
  return {{"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", scaling.low_freq_factor},
          {"high_freq_factor", scaling.high_freq_factor},
          {"original_max_position_embeddings", scaling.original_max_position_embeddings}};
}

}  // namespace spear
