// The quantization_config of compressed-tensors "pack-quantized" models.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tensor/w4.h"

namespace spear {

/// Throws Error(bad_input) naming what differs from 4-bit integers per channel or in groups of 32, 64 or 128.
W4Scheme parse_quantization_config(const nlohmann::json& config, const std::string& where);

/// `ignored`: names of linears left dense; lm_head is always among them.
nlohmann::json make_quantization_config(const W4Scheme& scheme, const std::vector<std::string>& ignored);

}  // namespace spear
