// Compensators as low-rank adapters (LoRA) for engines that know no gates: y = W x + B A x.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "model/weights.h"

namespace spear {

/// Mean gate of every rank by module index: [rank] each, empty where there is no gate (which means ones).
using MeanGates = std::vector<std::vector<float>>;

/// One module's compensator with the mean of its gate in A; ranks beyond its own are zero.
struct LoraFactors {
  ModuleId id;
  std::int64_t rank = 0, in_features = 0, out_features = 0;
  std::vector<float> a;  ///< [rank, in_features]
  std::vector<float> b;  ///< [out_features, rank]
};

/// All compensators, padded to the largest rank. Products of int8 factors and f16 scales are exact in float32, so a
/// compensator without a gate loses nothing. Throws Error(usage) when there are none, or a gate has no mean.
std::vector<LoraFactors> lora_factors(const ModelWeights& weights, const MeanGates& gates);

/// adapter_config.json and adapter_model.safetensors (F32) into an existing directory, as PEFT writes them, with
/// lora_alpha = r. Modules that a targeted name also matches but that have no compensator get zeros.
void write_peft_adapter(const std::filesystem::path& directory, const ModelConfig& config,
                        std::span<const LoraFactors> factors, const std::string& base_model);

/// A GGUF file with the names that llama.cpp's convert_lora_to_gguf writes, in F32, alpha = rank; rows of B of q and k
/// are permuted as those of the weights are. Throws Error(usage) for a family that llama.cpp has no name for.
void write_gguf_adapter(const std::filesystem::path& path, const ModelConfig& config,
                        std::span<const LoraFactors> factors, const std::string& name);

}  // namespace spear
