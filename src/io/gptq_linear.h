// 4-bit linears as GPTQ (both formats) and AWQ (gemm) store them: transposed, with zero points always.
#pragma once

#include <string>

#include "io/quantization_config.h"
#include "io/safetensors.h"
#include "tensor/w4.h"

namespace spear {

/// Whether `module` is stored that way in this file.
bool has_gptq_linear(const TensorMap& tensors, const std::string& module);

/// Moves `module`'s qweight, qzeros, scales and g_idx out of the map: codes and scales as they are, in our order.
/// Throws Error(bad_input) naming the tensor that is missing or wrong, a symmetric model with other zero points than 8,
/// groups that a g_idx fills unevenly (take_group_index), and a zero point of 16, which GPTQ's first format can hold and
/// no kernel reads alike.
W4Matrix take_gptq_linear(TensorMap& tensors, const std::string& module, std::int64_t rows, std::int64_t cols,
                          const QuantizationFormat& format, const std::string& where);

/// Adds them as GPTQ stores them; codes and scales keep their bits, and so do zero points. `zero_offset` is what readers
/// add to stored zero points: 1 in GPTQ's first format. Throws Error(usage) when a side is not divisible by 8 or, with
/// an offset, a zero point is 0.
void put_gptq_linear(TensorMap& tensors, const std::string& module, const W4Matrix& matrix, int zero_offset);

}  // namespace spear
