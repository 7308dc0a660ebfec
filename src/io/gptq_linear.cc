#include "io/gptq_linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "io/group_index.h"

namespace spear {
namespace {

using Packing = QuantizationFormat::Packing;

/// Where AWQ puts logical nibble j of a word.
constexpr std::array<int, 8> kAwqOrder = {0, 4, 1, 5, 2, 6, 3, 7};

std::uint8_t nibble(std::uint32_t word, int index) { return static_cast<std::uint8_t>(word >> (4 * index) & 0xfU); }

/// [rows, cols] codes. GPTQ packs along the inputs, AWQ along the outputs.
std::vector<std::uint8_t> unpack_codes(const Tensor& qweight, std::int64_t rows, std::int64_t cols, Packing packing) {
  const auto words = qweight.as<std::uint32_t>();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const std::uint32_t word =
          words[static_cast<std::size_t>(packing == Packing::gptq ? col / 8 * rows + row : col * (rows / 8) + row / 8)];
      const int index =
          packing == Packing::gptq ? static_cast<int>(col % 8) : kAwqOrder[static_cast<std::size_t>(row % 8)];
      codes[static_cast<std::size_t>(row * cols + col)] = nibble(word, index);
    }
  }
  return codes;
}

/// [rows, groups]; both formats pack along the outputs.
std::vector<std::uint8_t> unpack_zeros(const Tensor& qzeros, std::int64_t rows, std::int64_t groups,
                                       const QuantizationFormat& format, const std::string& where) {
  const auto words = qzeros.as<std::uint32_t>();
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(rows * groups));
  for (std::int64_t row = 0; row < rows; ++row) {
    const int index =
        format.packing == Packing::gptq ? static_cast<int>(row % 8) : kAwqOrder[static_cast<std::size_t>(row % 8)];
    for (std::int64_t group = 0; group < groups; ++group) {
      const int zero =
          nibble(words[static_cast<std::size_t>(group * (rows / 8) + row / 8)], index) + format.zero_offset;
      if (zero > 15) {
        throw bad_input(fmt::format("the zero point of output {}, group {} is 16", row, group), where,
                        "GPTQ's first format cannot hold a zero point of 0; export the model as gptq_v2");
      }
      zeros[static_cast<std::size_t>(row * groups + group)] = static_cast<std::uint8_t>(zero);
    }
  }
  return zeros;
}

}  // namespace

bool has_gptq_linear(const TensorMap& tensors, const std::string& module) {
  return tensors.contains(module + ".qweight");
}

W4Matrix take_gptq_linear(TensorMap& tensors, const std::string& module, std::int64_t rows, std::int64_t cols,
                          const QuantizationFormat& format, const std::string& where) {
  W4Matrix shape;
  shape.rows = rows;
  shape.cols = cols;
  shape.scheme = format.scheme;
  const std::int64_t groups = shape.groups();
  if (rows % 8 != 0 || cols % 8 != 0) {
    throw bad_input(fmt::format("a linear of {} x {} cannot be packed in words of 8", rows, cols),
                    where + ": " + module);
  }
  const bool gptq = format.packing == Packing::gptq;
  const auto qweight = take_tensor(tensors, module + ".qweight", gptq ? Shape{cols / 8, rows} : Shape{cols, rows / 8},
                                   {DType::i32}, where);
  const auto qzeros = take_tensor(tensors, module + ".qzeros", {groups, rows / 8}, {DType::i32}, where);
  const auto stored = take_tensor(tensors, module + ".scales", {groups, rows}, {DType::f16}, where);
  auto group_index = take_group_index(tensors, module + ".g_idx", shape, where);

  const auto bits = stored.as<std::uint16_t>();
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows * groups));
  for (std::int64_t i = 0; i < rows * groups; ++i)
    scales[static_cast<std::size_t>(i)] = bits[static_cast<std::size_t>(i % groups * rows + i / groups)];
  auto zeros = unpack_zeros(qzeros, rows, groups, format, where + ": " + module + ".qzeros");
  if (format.scheme.symmetric) {
    if (std::any_of(zeros.begin(), zeros.end(), [](std::uint8_t zero) { return zero != 8; })) {
      throw bad_input("the config says symmetric, but zero points differ from 8", where + ": " + module + ".qzeros",
                      "correct the config (sym or zero_point, checkpoint_format), or get the model again");
    }
    zeros.clear();
  }
  W4Matrix matrix =
      pack_w4(rows, cols, format.scheme, unpack_codes(qweight, rows, cols, format.packing), scales, zeros);
  matrix.group_index = std::move(group_index);
  return matrix;
}

void put_gptq_linear(TensorMap& tensors, const std::string& module, const W4Matrix& matrix, int zero_offset) {
  const std::int64_t rows = matrix.rows;
  const std::int64_t cols = matrix.cols;
  const std::int64_t groups = matrix.groups();
  if (rows % 8 != 0 || cols % 8 != 0) {
    throw usage_error(fmt::format("GPTQ packs words of 8, and the linear is {} x {}", rows, cols), module,
                      "keep the checkpoint as it is: compressed-tensors holds any shape");
  }
  Tensor qweight(DType::i32, {cols / 8, rows});
  const auto words = qweight.mutable_as<std::uint32_t>();  // nibble i of word c is column 8c + i, here as in W4Matrix
  for (std::int64_t i = 0; i < rows * (cols / 8); ++i) {
    words[static_cast<std::size_t>(i % (cols / 8) * rows + i / (cols / 8))] = matrix.packed[static_cast<std::size_t>(i)];
  }
  Tensor qzeros(DType::i32, {groups, rows / 8});
  Tensor scales(DType::f16, {groups, rows});
  const auto zeros = qzeros.mutable_as<std::uint32_t>();
  const auto bits = scales.mutable_as<std::uint16_t>();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      bits[static_cast<std::size_t>(group * rows + row)] = matrix.scales[static_cast<std::size_t>(row * groups + group)];
      const int zero = matrix.zero(row, group) - zero_offset;
      if (zero < 0) {
        throw usage_error(fmt::format("zero point 0 of output {}, group {}: GPTQ's first format cannot hold it", row, group),
                          module, "write gptq_v2");
      }
      zeros[static_cast<std::size_t>(group * (rows / 8) + row / 8)] |= static_cast<std::uint32_t>(zero) << (4 * (row % 8));
    }
  }
  tensors[module + ".qweight"] = std::move(qweight);
  tensors[module + ".qzeros"] = std::move(qzeros);
  tensors[module + ".scales"] = std::move(scales);
  tensors[module + ".g_idx"] = stored_group_index(matrix);
}

}  // namespace spear
