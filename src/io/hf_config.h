// Hugging Face's config.json: every option that changes results is honoured or refused by name.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/quantization_config.h"
#include "model/config.h"
#include "tensor/dtype.h"
#include "tensor/w4.h"

namespace spear {

struct HfConfig {
  ModelConfig model;
  std::optional<QuantizationFormat> quantization;  ///< from its quantization_config
};

/// Throws Error(bad_input) naming the option that is missing, malformed or not supported; `where` is the file.
HfConfig parse_hf_config(const nlohmann::json& config, const std::string& where);

/// config.json of a directory, with the end tokens that generation_config.json adds.
HfConfig read_hf_directory_config(const std::filesystem::path& directory);

/// Whether the family's files hold gains less 1.
bool gains_beyond_one(const ModelConfig& model);

/// The reverse, without a quantization_config. `dtype` is that of the unquantized tensors.
nlohmann::json make_hf_config(const ModelConfig& model, DType dtype);

}  // namespace spear
