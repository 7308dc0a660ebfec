// A 4-bit linear as compressed-tensors "pack-quantized" stores it.
#pragma once

#include <string>

#include "io/safetensors.h"
#include "tensor/w4.h"

namespace spear {

/// Whether `module` is packed in this file.
bool has_packed_linear(const TensorMap& tensors, const std::string& module);

/// Moves `module`'s tensors (weight_packed, weight_scale, weight_shape, weight_zero_point when asymmetric, weight_g_idx
/// if there is one) out of the map. Throws Error(bad_input) naming the tensor that is missing or wrong; scales that F16
/// can't hold exactly are refused, and so is what take_group_index refuses.
W4Matrix take_packed_linear(TensorMap& tensors, const std::string& module, std::int64_t rows, std::int64_t cols,
                            const W4Scheme& scheme, const std::string& where);

/// Adds them; the map views `matrix`, which must outlive it. `act_order`: weight_g_idx is written whatever the groups
/// follow, since a config that says so promises it of all linears.
void put_packed_linear(TensorMap& tensors, const std::string& module, const W4Matrix& matrix, bool act_order);

}  // namespace spear
