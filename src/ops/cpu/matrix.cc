#include "ops/cpu/matrix.h"

#include <fmt/format.h>

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
}

Matrix::Matrix(const LinearWeight& weight, const std::string& where)
    : Matrix(std::holds_alternative<Tensor>(weight) ? Matrix(std::get<Tensor>(weight), where)
                                                    : Matrix(std::get<W4Matrix>(weight), where)) {}

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
