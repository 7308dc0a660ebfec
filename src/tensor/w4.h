// The one definition of a packed 4-bit matrix. Bytes are those of compressed-tensors "pack-quantized":
// row-major [rows, ceil(cols / 8)] little-endian 32-bit words, nibble i of word c is column 8c + i.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace spear {

/// w = scale * (code - zero), code in 0..15. Symmetric schemes have zero = 8 everywhere and store no zeros.
struct W4Scheme {
  std::int64_t group_size = 0;  ///< columns that share a scale; 0 = one scale per row (per channel)
  bool symmetric = true;

  bool operator==(const W4Scheme&) const = default;
};

/// "w4-channel-sym", "w4-g128-asym", ...; groups of 32, 64 and 128. Throws Error(usage) naming the valid ones.
W4Scheme parse_scheme(std::string_view text);
std::string to_string(const W4Scheme& scheme);

struct W4Matrix {
  std::int64_t rows = 0, cols = 0;  ///< out_features, in_features
  W4Scheme scheme;
  std::vector<std::uint32_t> packed;  ///< [rows, words_per_row()]
  std::vector<std::uint16_t> scales;  ///< f16 bits, [rows, groups()]
  std::vector<std::uint8_t> zeros;    ///< 0..15, [rows, groups()]; empty when symmetric
  /// [cols], the group of each column where groups do not follow the columns (GPTQ's act-order); empty when they do.
  /// Columns themselves always stay in the model's order. Readers see to it that group i has group_size columns, the last
  /// one what is left.
  std::vector<std::int32_t> group_index = {};

  std::int64_t words_per_row() const { return (cols + 7) / 8; }
  std::int64_t groups() const { return scheme.group_size == 0 ? 1 : (cols + scheme.group_size - 1) / scheme.group_size; }
  std::int64_t group_of(std::int64_t col) const {
    if (!group_index.empty()) return group_index[static_cast<std::size_t>(col)];
    return scheme.group_size == 0 ? 0 : col / scheme.group_size;
  }
  /// [cols]: columns sorted by group, those of one group as they are; empty when that is their order anyway.
  std::vector<std::int32_t> columns_by_group() const;
  /// Bytes on disk and in memory: packed words, scales, zero points (packed two per byte), groups of columns.
  std::int64_t storage_bytes() const;

  int code(std::int64_t row, std::int64_t col) const {
    return static_cast<int>((packed[static_cast<std::size_t>(row * words_per_row() + col / 8)] >> (4 * (col % 8))) & 0xfU);
  }
  float scale(std::int64_t row, std::int64_t group) const;
  int zero(std::int64_t row, std::int64_t group) const {
    return zeros.empty() ? 8 : zeros[static_cast<std::size_t>(row * groups() + group)];
  }
  float value(std::int64_t row, std::int64_t col) const {
    const std::int64_t group = group_of(col);
    return scale(row, group) * static_cast<float>(code(row, col) - zero(row, group));
  }

  /// out: [cols], the dequantized row.
  void dequantize_row(std::int64_t row, std::span<float> out) const;
  std::vector<float> dequantize() const;  ///< [rows, cols]
};

/// Packs codes (0..15, [rows, cols]) with f16 scales [rows, groups] and zeros (empty if symmetric). Padding
/// nibbles of the last word are 8, so they dequantize to zero. Throws Error(failed) on sizes that disagree.
W4Matrix pack_w4(std::int64_t rows, std::int64_t cols, const W4Scheme& scheme, std::span<const std::uint8_t> codes,
                 std::span<const std::uint16_t> scales, std::span<const std::uint8_t> zeros = {});

}  // namespace spear
