// A matrix as llama.cpp quantizes it: rows of blocks of one GGUF type, kept byte for byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tensor/gguf_types.h"

namespace spear {

struct BlockMatrix {
  std::int64_t rows = 0, cols = 0;  ///< out_features, in_features; cols is a multiple of the type's block_size
  const GgufType* type = nullptr;   ///< one that is quantized()
  std::vector<std::byte> blocks;    ///< [rows, row_bytes()]

  std::int64_t row_bytes() const { return cols / type->block_size * type->block_bytes; }
  std::int64_t storage_bytes() const { return rows * row_bytes(); }

  /// out: [cols], the dequantized row.
  void dequantize_row(std::int64_t row, std::span<float> out) const;
  std::vector<float> dequantize() const;  ///< [rows, cols]
  /// The first row with a scale or minimum that is NaN or infinite, -1 if there is none: then every value is finite.
  std::int64_t first_non_finite_row() const;
};

}  // namespace spear
