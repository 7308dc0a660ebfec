#include "ops/cpu/matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace spear {
namespace {

std::vector<float> floats(std::span<const std::uint16_t> bits, float (*to_float)(std::uint16_t)) {
  std::vector<float> out(bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) out[i] = to_float(bits[i]);
  return out;
}

WeightKind dense_kind(DType type, const std::string& where) {
  switch (type) {
    case DType::f32:
      return WeightKind::f32;
    case DType::f16:
      return WeightKind::f16;
    case DType::bf16:
      return WeightKind::bf16;
    default:
      throw bad_input(fmt::format("weights of type {} have no CPU kernel", name(type)), where,
                      "store the tensor as F32, F16 or BF16");
  }
}

/// 4-bit codes whose groups do not follow the columns.
void read_grouped(const WeightView& weight, std::int64_t row, std::int64_t begin, std::int64_t end, float* out) {
  const auto* const words = static_cast<const std::uint32_t*>(weight.data) + row * (weight.row_bytes / 4);
  const float* const scales = weight.scales + row * weight.groups;
  const std::uint8_t* const zeros = weight.zeros == nullptr ? nullptr : weight.zeros + row * weight.groups;
  for (std::int64_t col = begin; col < end; ++col) {
    const std::int32_t group = weight.group_index[col];
    const auto code = static_cast<int>(words[col / 8] >> (4 * (col % 8)) & 0xfU);
    out[col - begin] = scales[group] * static_cast<float>(code - (zeros == nullptr ? 8 : zeros[group]));
  }
}

void read_blocks(const WeightView& weight, std::int64_t row, std::int64_t begin, std::int64_t end, float* out) {
  constexpr std::int64_t kLargestBlock = 256;
  const GgufType& type = *weight.type;
  const auto* const blocks = static_cast<const std::byte*>(weight.data) + row * weight.row_bytes;
  while (begin < end) {
    const std::int64_t block = begin / type.block_size, inside = begin % type.block_size;
    const std::int64_t whole = inside == 0 ? (end - begin) / type.block_size : 0,
                       count = std::max<std::int64_t>(whole, 1);
    const std::span bytes(blocks + block * type.block_bytes, static_cast<std::size_t>(count * type.block_bytes));
    std::int64_t done = whole * type.block_size;
    if (whole > 0) {
      type.dequantize(bytes, {out, static_cast<std::size_t>(done)});
    } else {
      std::array<float, kLargestBlock> values;
      type.dequantize(bytes, {values.data(), static_cast<std::size_t>(type.block_size)});
      done = std::min(end - begin, type.block_size - inside);
      std::copy_n(values.data() + inside, done, out);
    }
    out += done;
    begin += done;
  }
}

}  // namespace

Matrix::Matrix(const Tensor& tensor, const std::string& where) {
  if (tensor.shape().size() != 2) {
    throw bad_input(fmt::format("shape {} is not a matrix", to_string(tensor.shape())), where);
  }
  const auto element = static_cast<std::int64_t>(element_bytes(tensor.dtype()));
  view_.kind = dense_kind(tensor.dtype(), where);
  view_.rows = tensor.dim(0);
  view_.cols = tensor.dim(1);
  view_.row_bytes = view_.cols * element;
  view_.data = tensor.bytes().data();
  if (reinterpret_cast<std::uintptr_t>(view_.data) % static_cast<std::uintptr_t>(element) != 0) {
    aligned_.assign(tensor.bytes().begin(), tensor.bytes().end());
    view_.data = aligned_.data();
  }
}

Matrix::Matrix(const W4Matrix& packed, const std::string& where) : scales_(floats(packed.scales, f16_to_f32)) {
  const auto groups = static_cast<std::size_t>(packed.rows * packed.groups());
  const std::int64_t group_size = packed.scheme.group_size;
  if (packed.packed.size() != static_cast<std::size_t>(packed.rows * packed.words_per_row()) ||
      scales_.size() != groups || packed.zeros.size() != (packed.scheme.symmetric ? 0 : groups) ||
      group_size % 8 != 0) {
    throw bad_input(
        fmt::format("packed sizes do not fit [{}, {}] {}", packed.rows, packed.cols, to_string(packed.scheme)), where,
        "the checkpoint is damaged; write it again");
  }
  view_ = {WeightKind::w4,
           packed.rows,
           packed.cols,
           packed.packed.data(),
           packed.words_per_row() * 4,
           scales_.data(),
           packed.zeros.empty() ? nullptr : packed.zeros.data(),
           packed.groups(),
           group_size};
  if (packed.group_index.empty()) return;
  view_.kind = WeightKind::custom;
  view_.read = read_grouped;
  view_.group_index = packed.group_index.data();
}

Matrix::Matrix(const BlockMatrix& blocks, const std::string& where) {
  if (blocks.type == nullptr || !blocks.type->quantized() || blocks.cols % blocks.type->block_size != 0 ||
      static_cast<std::int64_t>(blocks.blocks.size()) != blocks.storage_bytes()) {
    throw bad_input(fmt::format("the blocks do not fit [{}, {}]", blocks.rows, blocks.cols), where,
                    "the file is damaged; get it again");
  }
  view_.kind = WeightKind::custom;
  view_.rows = blocks.rows;
  view_.cols = blocks.cols;
  view_.data = blocks.blocks.data();
  view_.row_bytes = blocks.row_bytes();
  view_.read = read_blocks;
  view_.type = blocks.type;
}

Matrix::Matrix(const LinearWeight& weight, const std::string& where)
    : Matrix(std::visit([&](const auto& w) { return Matrix(w, where); }, weight)) {}

Matrix::Matrix(std::span<const std::int8_t> values, std::int64_t rows, std::int64_t cols,
               std::span<const std::uint16_t> row_scales)
    : scales_(floats(row_scales, f16_to_f32)) {
  view_ = {WeightKind::i8, rows, cols, values.data(), cols, scales_.empty() ? nullptr : scales_.data()};
}

PreparedCompensator::PreparedCompensator(const Compensator& source)
    : a(source.a.get()),
      rank(source.rank),
      inputs(source.rank + source.gate_rows),
      hidden(source.gate.hidden),
      b(source.b, source.out_features, source.rank, {}),
      b_scales(floats(source.b_scales, f16_to_f32)),
      w1(floats(source.gate.w1, bf16_to_f32)),
      b1(floats(source.gate.b1, bf16_to_f32)),
      w2(floats(source.gate.w2, bf16_to_f32)),
      b2(floats(source.gate.b2, bf16_to_f32)) {}

void PreparedCompensator::weigh(const float* z, float* weighted, float* scratch) const {
  float* const activated = scratch;
  for (std::int64_t h = 0; h < hidden; ++h) {
    float sum = b1[static_cast<std::size_t>(h)];
    for (std::int64_t i = 0; i < inputs; ++i) sum += w1[static_cast<std::size_t>(h * inputs + i)] * z[i];
    activated[h] = sum / (1.0F + std::exp(-sum));
  }
  for (std::int64_t r = 0; r < rank; ++r) {
    float gate = 1.0F;
    if (hidden > 0) {
      float sum = b2[static_cast<std::size_t>(r)];
      for (std::int64_t h = 0; h < hidden; ++h) sum += w2[static_cast<std::size_t>(r * hidden + h)] * activated[h];
      gate += std::tanh(sum);
    }
    weighted[r] = gate * z[r] * b_scales[static_cast<std::size_t>(r)];
  }
}

}  // namespace spear
