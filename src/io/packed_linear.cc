#include "io/packed_linear.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "io/group_index.h"

namespace spear {
namespace {

// compressed-tensors stores weights and zero points alike as signed value + 8, so that the file's nibbles are our
// unsigned codes and zeros as they are. Zero points are packed along the rows, unlike weights, and padded with 0.

std::vector<std::uint8_t> unpack_zeros(const Tensor& packed, std::int64_t rows, std::int64_t groups) {
  const auto words = packed.as<std::uint32_t>();
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(rows * groups));
  for (std::int64_t i = 0; i < rows * groups; ++i) {
    const std::int64_t row = i / groups;
    const std::uint32_t word = words[static_cast<std::size_t>(row / 8 * groups + i % groups)];
    zeros[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(word >> (4 * (row % 8)) & 0xfU);
  }
  return zeros;
}

Tensor pack_zeros(const W4Matrix& matrix) {
  const std::int64_t groups = matrix.groups();
  Tensor packed(DType::i32, {(matrix.rows + 7) / 8, groups});
  const auto words = packed.mutable_as<std::uint32_t>();
  for (std::int64_t i = 0; i < matrix.rows * groups; ++i) {
    const std::int64_t row = i / groups;
    words[static_cast<std::size_t>(row / 8 * groups + i % groups)] |=
        static_cast<std::uint32_t>(matrix.zeros[static_cast<std::size_t>(i)]) << (4 * (row % 8));
  }
  return packed;
}

/// F16 bits of the scales. Other tools store BF16 or F32: taken if nothing is lost, because codes and scales are a
/// unit.
std::vector<std::uint16_t> exact_f16(const Tensor& scales, const std::string& where) {
  if (scales.dtype() == DType::f16) return to_vector<std::uint16_t>(scales);
  std::vector<std::uint16_t> bits;
  for (const float value : scales.to_floats()) {
    bits.push_back(f32_to_f16(value));
    if (f16_to_f32(bits.back()) != value) {
      throw bad_input(fmt::format("scale {} of {} is not representable in F16", value, name(scales.dtype())), where,
                      "use a model whose scales are stored in F16");
    }
  }
  return bits;
}

void check_stored_shape(TensorMap& tensors, const std::string& name, const Shape& expected, const std::string& where) {
  const Tensor stored = take_tensor(tensors, name, {2}, {DType::i64, DType::i32}, where);
  Shape shape;
  if (stored.dtype() == DType::i64) {
    shape = to_vector<std::int64_t>(stored);
  } else {
    for (const std::int32_t dim : stored.as<std::int32_t>()) shape.push_back(dim);
  }
  if (shape != expected) {
    throw bad_input(fmt::format("{} instead of {}", to_string(shape), to_string(expected)), where + ": " + name,
                    "the file does not belong to this config, or is damaged");
  }
}

}  // namespace

bool has_packed_linear(const TensorMap& tensors, const std::string& module) {
  return tensors.contains(module + ".weight_packed");
}

W4Matrix take_packed_linear(TensorMap& tensors, const std::string& module, std::int64_t rows, std::int64_t cols,
                            const W4Scheme& scheme, const std::string& where) {
  W4Matrix matrix;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.scheme = scheme;
  check_stored_shape(tensors, module + ".weight_shape", {rows, cols}, where);
  const auto words =
      take_tensor(tensors, module + ".weight_packed", {rows, matrix.words_per_row()}, {DType::i32}, where);
  const auto scales = take_tensor(tensors, module + ".weight_scale", {rows, matrix.groups()},
                                  {DType::f16, DType::bf16, DType::f32}, where);
  matrix.packed = to_vector<std::uint32_t>(words);
  matrix.scales = exact_f16(scales, where + ": " + module + ".weight_scale");
  if (!scheme.symmetric) {
    const auto zeros =
        take_tensor(tensors, module + ".weight_zero_point", {(rows + 7) / 8, matrix.groups()}, {DType::i32}, where);
    matrix.zeros = unpack_zeros(zeros, rows, matrix.groups());
  }
  matrix.group_index = take_group_index(tensors, module + ".weight_g_idx", matrix, where);
  return matrix;
}

void put_packed_linear(TensorMap& tensors, const std::string& module, const W4Matrix& matrix, bool act_order) {
  tensors[module + ".weight_packed"] = view_of(DType::i32, {matrix.rows, matrix.words_per_row()}, matrix.packed);
  tensors[module + ".weight_scale"] = view_of(DType::f16, {matrix.rows, matrix.groups()}, matrix.scales);
  if (!matrix.scheme.symmetric) tensors[module + ".weight_zero_point"] = pack_zeros(matrix);
  if (act_order && matrix.scheme.group_size != 0) tensors[module + ".weight_g_idx"] = stored_group_index(matrix);
  Tensor shape(DType::i64, {2});
  shape.mutable_as<std::int64_t>()[0] = matrix.rows;
  shape.mutable_as<std::int64_t>()[1] = matrix.cols;
  tensors[module + ".weight_shape"] = std::move(shape);
}

}  // namespace spear
