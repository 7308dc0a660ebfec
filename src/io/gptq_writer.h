// A model as a Hugging Face directory in GPTQ, for engines that read it.
#pragma once

#include <filesystem>
#include <string>

#include "model/weights.h"

namespace spear {

struct GptqExport {
  std::string checkpoint_format;  ///< "gptq", or "gptq_v2" where a zero point of 0 needs it
};

/// Writes config.json, quantize_config.json and model.safetensors into an existing directory. Codes, scales and zero
/// points keep their bits; compensators are left out. Throws Error(usage) naming a linear that is not packed, or whose
/// sides are not multiples of 8.
GptqExport write_gptq_model(const std::filesystem::path& directory, const ModelWeights& weights);

}  // namespace spear
