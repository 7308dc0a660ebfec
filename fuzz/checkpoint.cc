// model.safetensors from anybody beside a sound config.json; the first byte says which quantization that names.
#include "io/checkpoint.h"

#include <array>
#include <nlohmann/json.hpp>

#include "fuzz_file.h"
#include "io/hf_config.h"
#include "io/quantization_config.h"
#include "tiny_model.h"

using namespace spear;

namespace {

std::string config_text(std::size_t kind) {
  static const std::array<nlohmann::json, 8> quantizations = [] {
    const auto gptq = [](const char* format, bool symmetric) {
      return nlohmann::json{
          {"quant_method", "gptq"}, {"bits", 4}, {"group_size", -1}, {"sym", symmetric}, {"checkpoint_format", format}};
    };
    const auto tensors = [](bool symmetric) { return make_quantization_config(W4Scheme{0, symmetric}, {}); };
    return std::array<nlohmann::json, 8>{
        nullptr,
        tensors(true),
        tensors(false),
        gptq("gptq", true),
        gptq("gptq_v2", false),
        nlohmann::json{
            {"quant_method", "awq"}, {"bits", 4}, {"group_size", -1}, {"zero_point", true}, {"version", "gemm"}},
        make_quantization_config(W4Scheme{32, true}, {}, /*act_order=*/true),
        nlohmann::json{{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}, {"desc_act", true}, {"sym", true}}};
  }();
  nlohmann::json config = make_hf_config(fuzz::tiny_config(), DType::f16);
  if (!quantizations[kind].is_null()) config["quantization_config"] = quantizations[kind];
  return config.dump();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  static const fuzz::Directory directory;
  directory.write("config.json", config_text(data[0] % 8));
  directory.write("model.safetensors", fuzz::as_text(data + 1, size - 1));
  fuzz::survives([&] {
    const ModelWeights weights = read_checkpoint(directory.path());
    for (int index = 0; index < module_count(weights.config); ++index) {
      if (const auto* packed = std::get_if<W4Matrix>(&weights.linear({index}).weight)) {
        (void)packed->dequantize();
        (void)packed->columns_by_group();
      }
    }
  });
  return 0;
}
