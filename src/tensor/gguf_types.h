// GGUF's tensor types: block sizes and dequantization. One table row per type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace spear {

struct GgufType {
  std::uint32_t id = 0;         ///< ggml_type number in the file
  const char* name = "?";       ///< "Q4_0"
  std::int64_t block_size = 1;  ///< weights per block; a row is a whole number of blocks
  std::int64_t block_bytes = 0;
  /// blocks: whole blocks, out: block_size floats for each. Null: the type is known but can't be read.
  void (*dequantize)(std::span<const std::byte> blocks, std::span<float> out) = nullptr;
  /// Where a block has its one or two F16 numbers (d, then m or dmin), everything else being integers; -1: none.
  std::int64_t first_half = -1, second_half = -1;

  /// Blocks of integers that can be dequantized, as against plain numbers.
  bool quantized() const { return block_size > 1 && dequantize != nullptr; }
};

/// The type with this number, or null when it is unknown.
const GgufType* find_gguf_type(std::uint32_t id);

}  // namespace spear
