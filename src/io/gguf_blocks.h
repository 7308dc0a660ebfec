// Packed linears as blocks of GGUF and back, and the encoders of what else we write; values of every type that we read
// come from tensor/gguf_types.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "tensor/tensor.h"
#include "tensor/w4.h"

namespace spear {

inline constexpr std::uint32_t kGgufF32 = 0, kGgufF16 = 1, kGgufQ4_0 = 2, kGgufQ5_0 = 6, kGgufQ8_0 = 8, kGgufBF16 = 30;

/// The type that holds a matrix of this scheme exactly: Q4_0 for symmetric ones (d is the group's scale), Q5_0 for
/// asymmetric ones, because code - zero lies in -15..15. Columns must be a multiple of 32.
constexpr std::uint32_t gguf_type_of(const W4Scheme& scheme) { return scheme.symmetric ? kGgufQ4_0 : kGgufQ5_0; }

/// out: the blocks of one row in the type above.
void encode_w4_row(const W4Matrix& matrix, std::int64_t row, std::span<std::byte> out);

/// Blocks of Q4_0 as what they are: groups of 32 with an f16 scale (which may be negative), codes less 8. shape: [rows,
/// cols] of all `blocks`; row r of the file becomes row target_row(r).
W4Matrix decode_q4_0(std::span<const std::byte> blocks, const Shape& shape,
                     const std::function<std::int64_t(std::int64_t)>& target_row);

/// Q8_0: per 32 values, d = f16(max|v| / 127) and round(v / d). out: values.size() / 32 blocks of 34 bytes.
void encode_q8_0(std::span<const float> values, std::span<std::byte> out);

}  // namespace spear
