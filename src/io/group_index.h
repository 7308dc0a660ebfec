// The group of each input column, where a file of 4-bit linears names it (GPTQ's g_idx, compressed-tensors'
// weight_g_idx).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "tensor/w4.h"

namespace spear {

/// Moves tensor `name` ([cols], I32 or I64) out of the map, if it is there, and checks it against the shape and scheme
/// of `matrix`: W4Matrix::group_index, so empty where groups follow the columns. -1 throughout is how
/// compressed-tensors says the same. Throws Error(bad_input) for a group that does not exist, and for groups that do
/// not have group_size columns each (the last one what is left).
std::vector<std::int32_t> take_group_index(TensorMap& tensors, const std::string& name, const W4Matrix& matrix,
                                           const std::string& where);

/// [cols], I32: the group of each column, as both formats store it.
Tensor stored_group_index(const W4Matrix& matrix);

}  // namespace spear
