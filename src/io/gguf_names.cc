#include "io/gguf_names.h"

#include <fmt/format.h>

#include <array>

namespace spear {
namespace {

constexpr GgufArchitecture kArchitectures[] = {{"llama", "llama", true},
                                               {"qwen2", "qwen2", false},
                                               {"qwen3", "qwen3", false},
                                               {"gemma3", "gemma3_text", false}};

}  // namespace

const GgufArchitecture* find_gguf_architecture(std::string_view name) {
  for (const auto& architecture : kArchitectures) {
    if (name == architecture.name) return &architecture;
  }
  return nullptr;
}

const GgufArchitecture* gguf_architecture_of(const ModelConfig& config) {
  for (const auto& architecture : kArchitectures) {
    if (config.model_type == architecture.model_type) return &architecture;
  }
  return config.model_type == "mistral" ? &kArchitectures[0] : nullptr;
}

std::string gguf_linear_name(ModuleId id) {
  constexpr std::array<const char*, kLinearsPerLayer> kNames = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                                "ffn_gate", "ffn_up", "ffn_down"};
  return fmt::format("blk.{}.{}", id.layer(), kNames[static_cast<std::size_t>(id.kind())]);
}

std::string gguf_norm_name(NormId id, const ModelConfig& config) {
  constexpr std::array<const char*, kNormsPerLayer> kNames = {"attn_norm",     "ffn_norm",    "post_attention_norm",
                                                              "post_ffw_norm", "attn_q_norm", "attn_k_norm"};
  if (id == NormId::final(config)) return "output_norm.weight";
  return fmt::format("blk.{}.{}.weight", id.layer(), kNames[static_cast<std::size_t>(id.kind())]);
}

}  // namespace spear
