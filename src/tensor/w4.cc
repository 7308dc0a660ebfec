#include "tensor/w4.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "tensor/dtype.h"

namespace spear {

W4Scheme parse_scheme(std::string_view text) {
  const auto unknown = [&] {
    return usage_error(fmt::format("unknown scheme '{}'", text), "--scheme",
                       "use w4-channel-sym, w4-channel-asym, or w4-g{32,64,128}-{sym,asym}");
  };
  W4Scheme scheme;
  for (const bool symmetric : {true, false}) {
    for (const std::int64_t group : {0, 32, 64, 128}) {
      scheme = {group, symmetric};
      if (to_string(scheme) == text) return scheme;
    }
  }
  throw unknown();
}

std::string to_string(const W4Scheme& scheme) {
  return fmt::format("w4-{}-{}", scheme.group_size == 0 ? "channel" : fmt::format("g{}", scheme.group_size),
                     scheme.symmetric ? "sym" : "asym");
}

std::int64_t W4Matrix::storage_bytes() const {
  const std::int64_t zero_bytes = scheme.symmetric ? 0 : (rows * groups() + 1) / 2;
  return rows * words_per_row() * 4 + rows * groups() * 2 + zero_bytes +
         static_cast<std::int64_t>(group_index.size()) * 4;
}

std::vector<std::int32_t> W4Matrix::columns_by_group() const {
  std::vector<std::int32_t> order(group_index.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [this](std::int32_t a, std::int32_t b) { return group_of(a) < group_of(b); });
  return order;
}

float W4Matrix::scale(std::int64_t row, std::int64_t group) const {
  return f16_to_f32(scales[static_cast<std::size_t>(row * groups() + group)]);
}

void W4Matrix::dequantize_row(std::int64_t row, std::span<float> out) const {
  for (std::int64_t col = 0; col < cols; ++col) out[static_cast<std::size_t>(col)] = value(row, col);
}

std::vector<float> W4Matrix::dequantize() const {
  std::vector<float> out(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; ++row) {
    dequantize_row(row, std::span(out).subspan(static_cast<std::size_t>(row * cols), static_cast<std::size_t>(cols)));
  }
  return out;
}

W4Matrix pack_w4(std::int64_t rows, std::int64_t cols, const W4Scheme& scheme, std::span<const std::uint8_t> codes,
                 std::span<const std::uint16_t> scales, std::span<const std::uint8_t> zeros) {
  W4Matrix matrix{rows, cols, scheme, {}, {scales.begin(), scales.end()}, {zeros.begin(), zeros.end()}};
  const auto groups = static_cast<std::size_t>(rows * matrix.groups());
  if (codes.size() != static_cast<std::size_t>(rows * cols) || scales.size() != groups ||
      zeros.size() != (scheme.symmetric ? 0 : groups)) {
    throw failed(fmt::format("pack_w4: {} codes, {} scales, {} zeros for a {} x {} {} matrix", codes.size(),
                             scales.size(), zeros.size(), rows, cols, to_string(scheme)));
  }
  matrix.packed.assign(static_cast<std::size_t>(rows * matrix.words_per_row()), 0x88888888U);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      auto& word = matrix.packed[static_cast<std::size_t>(row * matrix.words_per_row() + col / 8)];
      const unsigned shift = 4U * static_cast<unsigned>(col % 8);
      word = (word & ~(0xfU << shift)) | ((codes[static_cast<std::size_t>(row * cols + col)] & 0xfU) << shift);
    }
  }
  return matrix;
}

}  // namespace spear
