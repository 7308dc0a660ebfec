#include "io/gptq_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/gptq_linear.h"
#include "io/hf_config.h"
#include "io/safetensors.h"
#include "io/stored_tensors.h"

namespace spear {
namespace {

using nlohmann::json;

struct Survey {
  W4Scheme scheme;
  bool zero_points_of_0 = false, act_order = false;
};

Survey survey(const ModelWeights& weights) {
  Survey result;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const ModuleId id{index};
    const auto* packed = std::get_if<W4Matrix>(&weights.linear(id).weight);
    if (packed == nullptr) {
      throw usage_error("the linear is not in 4 bit, and GPTQ files hold all linears alike", id.name(),
                        "export a model that spear recover or spear quantize made");
    }
    if (index > 0 && packed->scheme != result.scheme) {
      throw usage_error("linears have different schemes, and GPTQ files have one", id.name());
    }
    result.scheme = packed->scheme;
    result.act_order |= !packed->group_index.empty();
    result.zero_points_of_0 |= std::find(packed->zeros.begin(), packed->zeros.end(), 0) != packed->zeros.end();
  }
  return result;
}

}  // namespace

GptqExport write_gptq_model(const std::filesystem::path& directory, const ModelWeights& weights) {
  require_plain_stream(weights.config);
  const auto [scheme, zero_points_of_0, act_order] = survey(weights);
  const int zero_offset = zero_points_of_0 ? 0 : 1;
  const GptqExport result{zero_points_of_0 ? "gptq_v2" : "gptq"};
  const TensorMap tensors =
      stored_tensors(weights, true, [&](TensorMap& map, const std::string& module, const W4Matrix& matrix) {
        put_gptq_linear(map, module, matrix, zero_offset);
      });
  json quantization = {{"bits", 4},
                       {"group_size", scheme.group_size == 0 ? -1 : scheme.group_size},
                       {"sym", scheme.symmetric},
                       {"desc_act", act_order},
                       {"checkpoint_format", result.checkpoint_format},
                       {"lm_head", false}};
  write_file_atomic(directory / "quantize_config.json", quantization.dump(2) + "\n");
  quantization["quant_method"] = "gptq";
  const DType dtype = tensors.at("model.embed_tokens.weight").dtype();
  json config = make_hf_config(weights.config, dtype);
  config["quantization_config"] = std::move(quantization);
  write_file_atomic(directory / "config.json", config.dump(2) + "\n");
  write_safetensors(directory / "model.safetensors", tensors, {{"format", "pt"}});
  return result;
}

}  // namespace spear
