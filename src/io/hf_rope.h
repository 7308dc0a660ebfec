// Rotary embedding in config.json, in the words of old and new files.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/config.h"

namespace spear {

/// rope_theta and scaling, from the top level or, as newer files have it, from rope_parameters; Gemma has two sets.
/// Throws Error(bad_input) naming what is not supported.
void parse_rope(const nlohmann::json& config, double default_theta, ModelConfig& model, const std::string& where);

/// The value of rope_scaling.
nlohmann::json make_rope_scaling(const RopeScaling& scaling);

}  // namespace spear
