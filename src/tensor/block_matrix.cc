#include "tensor/block_matrix.h"

#include <cmath>
#include <cstring>

#include "tensor/dtype.h"

namespace spear {
namespace {

bool finite_half(const std::byte* block, std::int64_t offset) {
  if (offset < 0) return true;
  std::uint16_t bits;
  std::memcpy(&bits, block + offset, sizeof bits);
  return std::isfinite(f16_to_f32(bits));
}

}  // namespace

void BlockMatrix::dequantize_row(std::int64_t row, std::span<float> out) const {
  const auto bytes = static_cast<std::size_t>(row_bytes());
  type->dequantize(std::span(blocks).subspan(static_cast<std::size_t>(row) * bytes, bytes), out);
}

std::vector<float> BlockMatrix::dequantize() const {
  std::vector<float> out(static_cast<std::size_t>(rows * cols));
  type->dequantize(blocks, out);
  return out;
}

std::int64_t BlockMatrix::first_non_finite_row() const {
  const std::int64_t per_row = cols / type->block_size;
  for (std::int64_t i = 0; i < rows * per_row; ++i) {
    const std::byte* block = blocks.data() + i * type->block_bytes;
    if (!finite_half(block, type->first_half) || !finite_half(block, type->second_half)) return i / per_row;
  }
  return -1;
}

}  // namespace spear
