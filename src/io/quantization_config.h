// The quantization_config of 4-bit models: compressed-tensors "pack-quantized", GPTQ, AWQ.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tensor/w4.h"

namespace spear {

/// How a model's 4-bit linears are stored, and what they are.
struct QuantizationFormat {
  enum class Packing { compressed_tensors, gptq, awq };
  Packing packing = Packing::compressed_tensors;
  W4Scheme scheme;
  int zero_offset = 0;     ///< added to stored zero points: 1 in GPTQ's first format
  bool act_order = false;  ///< groups need not follow the inputs: a tensor must say which group each input is in
};

/// Throws Error(bad_input) naming what differs from 4-bit integers per channel or in groups of 32, 64 or 128.
QuantizationFormat parse_quantization_config(const nlohmann::json& config, const std::string& where);

/// `ignored`: names of linears left dense; lm_head is always among them. `act_order`: some linear has a weight_g_idx.
nlohmann::json make_quantization_config(const W4Scheme& scheme, const std::vector<std::string>& ignored,
                                        bool act_order = false);

}  // namespace spear
