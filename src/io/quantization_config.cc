#include "io/quantization_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/untrusted.h"

namespace spear {
namespace {

using nlohmann::json;

/// A field of a JSON object; null when absent or when `object` is none.
json field(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? json(nullptr) : *found;
}

void require(bool ok, const char* key, const json& value, const std::string& where) {
  if (ok) return;
  throw bad_input(
      fmt::format("quantization_config: {} = {} is not supported", key, printable(value.dump(-1, ' ', true))), where,
      "use a model in compressed-tensors pack-quantized, GPTQ or AWQ gemm, 4 bit, weights only");
}

void require_value(const json& object, const char* key, const json& expected, const std::string& where) {
  const json value = field(object, key);
  require(value == expected, key, value, where);
}

/// Absent, null and empty all mean "not used".
void require_unused(const json& object, const char* key, const std::string& where) {
  const json value = field(object, key);
  require(value.is_null() || (value.is_structured() && value.empty()), key, value, where);
}

W4Scheme parse_weights(const json& weights, const std::string& where) {
  require_value(weights, "num_bits", 4, where);
  require_value(weights, "type", "int", where);
  const json dynamic = field(weights, "dynamic");
  require(dynamic.is_null() || dynamic == false, "dynamic", dynamic, where);
  const json symmetric = field(weights, "symmetric");
  require(symmetric.is_null() || symmetric.is_boolean(), "symmetric", symmetric, where);
  const json strategy = field(weights, "strategy");
  const json group_size = field(weights, "group_size");
  W4Scheme scheme{0, symmetric != false};
  if (strategy == "group") {
    require(group_size == 32 || group_size == 64 || group_size == 128, "group_size", group_size, where);
    scheme.group_size = group_size.get<std::int64_t>();
  } else {
    require(strategy == "channel", "strategy", strategy, where);
    require(group_size.is_null() || group_size == -1, "group_size", group_size, where);
  }
  return scheme;
}

/// -1: one scale per row.
std::int64_t parse_group_size(const json& config, const std::string& where) {
  const json group_size = field(config, "group_size");
  require(group_size == -1 || group_size == 32 || group_size == 64 || group_size == 128, "group_size", group_size,
          where);
  return group_size == -1 ? 0 : group_size.get<std::int64_t>();
}

QuantizationFormat parse_gptq(const json& config, const std::string& where) {
  require_value(config, "bits", 4, where);
  const json symmetric = field(config, "sym");
  require(symmetric.is_boolean(), "sym", symmetric, where);
  require_unused(config, "dynamic", where);
  if (field(config, "lm_head") != false) require_unused(config, "lm_head", where);
  const json format = field(config, "checkpoint_format");
  require(format.is_null() || format == "gptq" || format == "gptq_v2", "checkpoint_format", format, where);
  return {QuantizationFormat::Packing::gptq,
          {parse_group_size(config, where), symmetric.get<bool>()},
          format == "gptq_v2" ? 0 : 1,
          field(config, "desc_act") == true};
}

QuantizationFormat parse_awq(const json& config, const std::string& where) {
  require(field(config, "bits") == 4 || field(config, "w_bit") == 4, "bits", field(config, "bits"), where);
  const json version = field(config, "version");
  require(version.is_null() || version == "gemm" || version == "GEMM", "version", version, where);
  const json zero_point = field(config, "zero_point");
  require(zero_point.is_boolean(), "zero_point", zero_point, where);
  require_unused(config, "modules_to_not_convert", where);
  return {QuantizationFormat::Packing::awq, {parse_group_size(config, where), !zero_point.get<bool>()}, 0};
}

QuantizationFormat parse_compressed_tensors(const json& config, const std::string& where) {
  require_value(config, "format", "pack-quantized", where);
  for (const char* key : {"kv_cache_scheme", "transform_config"}) require_unused(config, key, where);
  if (const json sparsity = field(config, "sparsity_config"); field(sparsity, "format") != "dense") {
    require_unused(config, "sparsity_config", where);
  }
  const json groups = field(config, "config_groups");
  require(groups.is_object() && groups.size() == 1, "config_groups", groups, where);
  const json& group = *groups.begin();
  require_value(group, "targets", json::array({"Linear"}), where);
  for (const char* key : {"input_activations", "output_activations"}) require_unused(group, key, where);
  const json weights = field(group, "weights");
  // "weight" (or "static") orders the quantizer's work only; "group" regroups the inputs.
  const json order = field(weights, "actorder");
  const bool known = order.is_null() || order.is_boolean() || order == "weight" || order == "static" ||
                     order == "group" || order == "dynamic";
  require(known, "actorder", order, where);
  const bool regrouped = order == true || order == "group" || order == "dynamic";
  return {QuantizationFormat::Packing::compressed_tensors, parse_weights(weights, where), 0, regrouped};
}

}  // namespace

QuantizationFormat parse_quantization_config(const json& config, const std::string& where) {
  const json method = field(config, "quant_method");
  if (method == "gptq") return parse_gptq(config, where);
  if (method == "awq") return parse_awq(config, where);
  require_value(config, "quant_method", "compressed-tensors", where);
  return parse_compressed_tensors(config, where);
}

json make_quantization_config(const W4Scheme& scheme, const std::vector<std::string>& ignored, bool act_order) {
  const bool grouped = scheme.group_size != 0;
  json weights = {
      {"num_bits", 4},
      {"type", "int"},
      {"symmetric", scheme.symmetric},
      {"strategy", grouped ? "group" : "channel"},
      {"group_size", grouped ? json(scheme.group_size) : json(nullptr)},
      {"dynamic", false},
  };
  if (act_order) weights["actorder"] = "group";
  json ignore = json::array({"lm_head"});
  for (const auto& name : ignored) ignore.push_back(name);
  return {
      {"quant_method", "compressed-tensors"},
      {"format", "pack-quantized"},
      {"quantization_status", "compressed"},
      {"config_groups",
       {{"group_0",
         {{"targets", {"Linear"}},
          {"weights", std::move(weights)},
          {"input_activations", nullptr},
          {"output_activations", nullptr}}}}},
      {"ignore", std::move(ignore)},
      {"kv_cache_scheme", nullptr},
  };
}

}  // namespace spear
