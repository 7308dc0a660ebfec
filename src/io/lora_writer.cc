#include "io/lora_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "io/gguf_names.h"
#include "io/gguf_writer.h"
#include "io/safetensors.h"

namespace spear {
namespace {

LoraFactors factors_of(ModuleId id, const Compensator& compensator, std::span<const float> gate, std::int64_t rank) {
  LoraFactors out{id, rank, compensator.in_features(), compensator.out_features, {}, {}};
  out.a.assign(static_cast<std::size_t>(rank * out.in_features), 0.0F);
  out.b.assign(static_cast<std::size_t>(out.out_features * rank), 0.0F);
  for (std::int64_t r = 0; r < compensator.rank; ++r) {
    const auto k = static_cast<std::size_t>(r);
    const float a_scale = f16_to_f32(compensator.a->scales[k]);
    const float b_scale = f16_to_f32(compensator.b_scales[k]);
    for (std::int64_t col = 0; col < out.in_features; ++col) {
      const auto at = static_cast<std::size_t>(r * out.in_features + col);
      out.a[at] = static_cast<float>(compensator.a->values[at]) * a_scale * (gate.empty() ? 1.0F : gate[k]);
    }
    for (std::int64_t row = 0; row < out.out_features; ++row) {
      out.b[static_cast<std::size_t>(row * rank + r)] =
          static_cast<float>(compensator.b[static_cast<std::size_t>(row * compensator.rank + r)]) * b_scale;
    }
  }
  return out;
}

/// "q_proj", as PEFT's target_modules have it.
std::string target_name(LinearKind kind) {
  const std::string_view name = kLinearNames[static_cast<std::size_t>(kind)];
  return std::string(name.substr(name.find('.') + 1));
}

}  // namespace

std::vector<LoraFactors> lora_factors(const ModelWeights& weights, const MeanGates& gates) {
  std::int64_t rank = 0;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const auto& compensator = weights.linear({index}).compensator;
    if (compensator) rank = std::max(rank, compensator->rank);
  }
  if (rank == 0) throw usage_error("the model has no compensators", "", "export a checkpoint that spear recover made");
  std::vector<LoraFactors> out;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const auto& compensator = weights.linear({index}).compensator;
    if (!compensator) continue;
    const auto at = static_cast<std::size_t>(index);
    const std::span<const float> gate = at < gates.size() ? std::span<const float>(gates[at]) : std::span<const float>();
    if (compensator->gate.hidden > 0 && static_cast<std::int64_t>(gate.size()) != compensator->rank) {
      throw usage_error("the compensator has a gate, and its mean was not measured", ModuleId{index}.name());
    }
    out.push_back(factors_of({index}, *compensator, compensator->gate.hidden > 0 ? gate : std::span<const float>(), rank));
  }
  return out;
}

void write_peft_adapter(const std::filesystem::path& directory, const ModelConfig& config,
                        std::span<const LoraFactors> factors, const std::string& base_model) {
  const std::int64_t rank = factors.front().rank;
  std::set<LinearKind> kinds;
  for (const auto& f : factors) kinds.insert(f.id.kind());
  TensorMap tensors;
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    if (!kinds.contains(id.kind())) continue;
    const std::string name = "base_model.model." + id.name();
    tensors[name + ".lora_A.weight"] = Tensor(DType::f32, {rank, in_features(config, id.kind())});
    tensors[name + ".lora_B.weight"] = Tensor(DType::f32, {out_features(config, id.kind()), rank});
  }
  for (const auto& f : factors) {
    const std::string name = "base_model.model." + f.id.name();
    tensors[name + ".lora_A.weight"] = Tensor::from_floats({rank, f.in_features}, f.a);
    tensors[name + ".lora_B.weight"] = Tensor::from_floats({f.out_features, rank}, f.b);
  }
  nlohmann::json targets = nlohmann::json::array();
  for (const LinearKind kind : kinds) targets.push_back(target_name(kind));
  const nlohmann::json adapter = {{"peft_type", "LORA"},     {"task_type", "CAUSAL_LM"},
                                  {"r", rank},               {"lora_alpha", rank},
                                  {"lora_dropout", 0.0},     {"bias", "none"},
                                  {"fan_in_fan_out", false}, {"inference_mode", true},
                                  {"use_rslora", false},     {"base_model_name_or_path", base_model},
                                  {"target_modules", targets}};
  write_file_atomic(directory / "adapter_config.json", adapter.dump(2) + "\n");
  write_safetensors(directory / "adapter_model.safetensors", tensors, {{"format", "pt"}});
}

void write_gguf_adapter(const std::filesystem::path& path, const ModelConfig& config,
                        std::span<const LoraFactors> factors, const std::string& name) {
  const GgufArchitecture* architecture = gguf_architecture_of(config);
  if (architecture == nullptr) {
    throw usage_error(fmt::format("llama.cpp's name for '{}' is not known", config.model_type), "model_type",
                      "export the compensators with --format peft");
  }
  GgufWriter out;
  out.text("general.architecture", architecture->name);
  out.text("general.type", "adapter");
  if (!name.empty()) out.text("general.name", name);
  out.text("adapter.type", "lora");
  out.f32("adapter.lora.alpha", static_cast<double>(factors.front().rank));
  for (const auto& f : factors) {
    std::vector<float> b = f.b;
    if (has_permuted_rows(*architecture, f.id.kind())) {
      for (std::int64_t row = 0; row < f.out_features; ++row) {
        std::copy_n(f.b.begin() + unpermuted_row(row, config.head_dim) * f.rank, f.rank, b.begin() + row * f.rank);
      }
    }
    const std::string tensor = gguf_linear_name(f.id) + ".weight";
    out.f32_tensor(tensor + ".lora_a", {f.rank, f.in_features}, f.a);
    out.f32_tensor(tensor + ".lora_b", {f.out_features, f.rank}, std::move(b));
  }
  out.write(path);
}

}  // namespace spear
