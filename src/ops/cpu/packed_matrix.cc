#include "ops/cpu/packed_matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops/cpu/matrix.h"
#include "tensor/dtype.h"
#include "tensor/gguf_codes.h"
#include "tensor/vector_math.h"

namespace spear {
namespace {

constexpr std::int64_t kRoundedGroup = 32;
static_assert(kSmallestGroup == kSmallestGgufGroup);
constexpr std::int64_t kFewRows = 12;  // above, a panel's padding costs less than sums along columns

/// Nibbles 0 4 1 5 2 6 3 7 of a word: a perfect shuffle, by two exchanges of the middle quarters.
std::uint32_t shuffle_nibbles(std::uint32_t x) {
  std::uint32_t swapped = (x ^ x >> 8) & 0x0000ff00U;
  x ^= swapped ^ swapped << 8;
  swapped = (x ^ x >> 4) & 0x00f000f0U;
  return x ^ swapped ^ swapped << 4;
}

SPEAR_VECTOR_CLONES void widen_bf16(const std::uint16_t* in, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(in[i]);
}

SPEAR_VECTOR_CLONES void widen_f16(const std::uint16_t* in, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(in[i]);
}

void read_floats(const Tensor& tensor, std::int64_t row, float* out) {
  const std::int64_t cols = tensor.dim(1);
  if (tensor.dtype() == DType::f32) {
    const auto values =
        tensor.as<float>().subspan(static_cast<std::size_t>(row * cols), static_cast<std::size_t>(cols));
    std::copy(values.begin(), values.end(), out);
    return;
  }
  const std::uint16_t* const bits = tensor.as<std::uint16_t>().data() + row * cols;
  tensor.dtype() == DType::bf16 ? widen_bf16(bits, cols, out) : widen_f16(bits, cols, out);
}

/// The nibbles of one row's words in this order of columns, in `out`; the last word is padded with 8.
const std::uint32_t* sorted_codes(const std::uint32_t* words, const std::vector<std::int32_t>& order,
                                  std::vector<std::uint32_t>& out) {
  out.assign((order.size() + 7) / 8, 0x88888888U);
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto col = static_cast<std::uint32_t>(order[i]);
    const std::uint32_t code = words[col / 8] >> (4 * (col % 8)) & 0xfU,
                        shift = 4 * (static_cast<std::uint32_t>(i) % 8);
    out[i / 8] = (out[i / 8] & ~(0xfU << shift)) | code << shift;
  }
  return out.data();
}

/// codes = zero + round(v / scale), at most `top` from zero, with scale = f16(max|v| / top); returns the scale's bits.
SPEAR_VECTOR_CLONES std::uint16_t round_group(const float* v, int top, int zero, std::uint8_t* codes) {
  std::int32_t largest = 0;  // of the absolute values' bits, which order like the values
  for (std::int64_t i = 0; i < kRoundedGroup; ++i) {
    largest = std::max(largest, static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(v[i]) & 0x7fffffffU));
  }
  const std::uint16_t bits = f32_to_f16(std::bit_cast<float>(largest) / static_cast<float>(top));
  const float scale = f16_to_f32(bits), inverse = scale > 0 ? 1.0F / scale : 0.0F;
  for (std::int64_t i = 0; i < kRoundedGroup; ++i) {
    // 1.5 * 2^23: the sum's low mantissa bits are the rounded integer
    const auto code = std::bit_cast<std::int32_t>(v[i] * inverse + 12582912.0F) - 0x4b400000;
    codes[i] = static_cast<std::uint8_t>(zero + std::clamp(code, -top, top));
  }
  return bits;
}

void require_matrix(const Tensor& tensor, const std::string& where) {
  if (tensor.shape().size() != 2) {
    throw bad_input(fmt::format("shape {} is not a matrix", to_string(tensor.shape())), where);
  }
  if (tensor.dtype() != DType::f32 && tensor.dtype() != DType::f16 && tensor.dtype() != DType::bf16) {
    throw bad_input(fmt::format("weights of type {} have no CPU kernel", name(tensor.dtype())), where,
                    "store the tensor as F32, F16 or BF16");
  }
}

std::vector<float> floats(std::span<const std::uint16_t> bits, float (*to_float)(std::uint16_t)) {
  std::vector<float> out(bits.size());
  std::transform(bits.begin(), bits.end(), out.begin(), to_float);
  return out;
}

/// [rows, cols] -> [cols, rows].
std::vector<float> transposed(const std::vector<float>& in, std::int64_t rows, std::int64_t cols) {
  std::vector<float> out(in.size());
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j)
      out[static_cast<std::size_t>(j * rows + i)] = in[static_cast<std::size_t>(i * cols + j)];
  }
  return out;
}

/// [rows, cols] -> [rows, cols rounded up to 16], zeros between.
std::vector<float> padded(const std::vector<float>& in, std::int64_t rows, std::int64_t cols) {
  const std::int64_t width = (cols + 15) / 16 * 16;
  std::vector<float> out(static_cast<std::size_t>(rows * width));
  for (std::int64_t i = 0; i < rows; ++i) std::copy_n(in.begin() + i * cols, cols, out.begin() + i * width);
  return out;
}

}  // namespace

PackedMatrix::PackedMatrix(PackedKind kind, std::int64_t rows, std::int64_t cols, std::int64_t group_size, Beside beside,
                           WeightArena& arena) {
  view_.kind = kind;
  view_.rows = rows;
  view_.cols = cols;
  view_.depth = (cols + kActivationBlock - 1) / kActivationBlock * kActivationBlock;
  view_.group_panels = rows > kPanelRows ? 2 : 1;
  view_.group_size = group_size;
  view_.groups = group_size == 0 ? 1 : (view_.depth + group_size - 1) / group_size;
  const std::int64_t padded = view_.panel_groups() * view_.group_rows(), parts = padded * view_.groups;
  const std::int64_t codes = view_.panel_groups() * view_.group_bytes();
  const std::int64_t scales = kind == PackedKind::bf16 ? 0 : group_size == 0 ? 4 * padded : 2 * parts;
  bytes_ = codes + scales + (beside == Beside::zeros ? parts : beside == Beside::minima ? 2 * parts : 0);
  memory_ = arena.allocate(static_cast<std::size_t>(bytes_));
  view_.data = memory_.get();
  if (scales > 0 && group_size == 0) {
    view_.row_scales = row_scales_ = reinterpret_cast<float*>(memory_.get() + codes);
  } else if (scales > 0) {
    view_.group_scales = group_scales_ = reinterpret_cast<std::uint16_t*>(memory_.get() + codes);
  }
  std::uint8_t* const rest = memory_.get() + codes + scales;
  if (beside == Beside::zeros) view_.zeros = zeros_ = rest;
  if (beside == Beside::minima) view_.group_minima = group_minima_ = reinterpret_cast<std::uint16_t*>(rest);
}

std::size_t PackedMatrix::scale_index(std::int64_t row, std::int64_t group) const {
  return static_cast<std::size_t>((row / kPanelRows * view_.groups + group) * kPanelRows + row % kPanelRows);
}

/// write(row, lane) for every row; lane: its 4 bytes in each step of its panel, lane_stride() apart. What no row writes
/// (padding) holds codes that count as zero.
template <class Write>
void PackedMatrix::fill(ThreadPool& pool, Write write) {
  const int padding = view_.kind == PackedKind::w4 ? 0x88 : view_.kind == PackedKind::bf16 ? 0 : 0x80;
  pool.parallel_for(view_.panel_groups(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      std::uint8_t* const data = memory_.get() + group * view_.group_bytes();
      const std::int64_t first = group * view_.group_rows(), last = std::min(first + view_.group_rows(), view_.rows);
      if (view_.depth != view_.cols || last - first < view_.group_rows()) {
        std::memset(data, padding, static_cast<std::size_t>(view_.group_bytes()));
      }
      for (std::int64_t row = first; row < last; ++row) {
        write(row, data + (row - first) / kPanelRows * 64 + (row - first) % kPanelRows * 4);
      }
    }
  });
}

void PackedMatrix::write_codes(const std::uint8_t* codes, std::uint8_t* lane) const {
  const std::int64_t columns = columns_per_step(view_.kind);
  for (std::int64_t col = 0; col < view_.depth; col += columns, codes += columns, lane += lane_stride()) {
    std::uint8_t step[4];
    for (std::int64_t j = 0; j < 4; ++j) {
      step[j] = view_.kind == PackedKind::w8 ? codes[j] : static_cast<std::uint8_t>(codes[j] | codes[j + 4] << 4);
    }
    std::memcpy(lane, step, sizeof step);
  }
}

PackedMatrix PackedMatrix::from_w4(const W4Matrix& m, const std::string& where, const PackContext& context) {
  const auto groups = static_cast<std::size_t>(m.rows * m.groups());
  if (m.packed.size() != static_cast<std::size_t>(m.rows * m.words_per_row()) || m.scales.size() != groups ||
      m.zeros.size() != (m.scheme.symmetric ? 0 : groups) || m.scheme.group_size % kRoundedGroup != 0 ||
      (!m.group_index.empty() && m.scheme.group_size == 0)) {
    throw bad_input(fmt::format("packed sizes do not fit [{}, {}] {}", m.rows, m.cols, to_string(m.scheme)), where,
                    "the checkpoint is damaged; write it again");
  }
  PackedMatrix out(PackedKind::w4, m.rows, m.cols, m.scheme.group_size,
                   m.scheme.symmetric ? Beside::nothing : Beside::zeros, context.arena);
  const auto order = m.columns_by_group();
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (m.group_of(order[i]) == static_cast<std::int64_t>(i) / m.scheme.group_size) continue;
    throw bad_input("groups of unequal size", where, "get the model again");  // readers see to it
  }
  out.fill(context.pool, [&](std::int64_t row, std::uint8_t* lane) {
    const std::uint32_t* words = m.packed.data() + row * m.words_per_row();
    thread_local std::vector<std::uint32_t> sorted;
    if (!order.empty()) words = sorted_codes(words, order, sorted);
    for (std::int64_t i = 0; i < m.words_per_row(); ++i, lane += out.lane_stride()) {
      const std::uint32_t step = shuffle_nibbles(words[i]);
      std::memcpy(lane, &step, sizeof step);
    }
    for (std::int64_t group = 0; group < m.groups(); ++group) {
      const std::size_t at = out.scale_index(row, group);
      if (m.scheme.group_size == 0) {
        out.row_scales_[row] = m.scale(row, 0);
      } else {
        out.group_scales_[at] = m.scales[static_cast<std::size_t>(row * m.groups() + group)];
      }
      if (!m.scheme.symmetric) out.zeros_[at] = static_cast<std::uint8_t>(m.zero(row, group));
    }
  });
  return out;
}

PackedMatrix PackedMatrix::from_int8(std::span<const std::int8_t> values, std::int64_t rows, std::int64_t cols,
                                     std::span<const std::uint16_t> row_scales, const PackContext& context) {
  const bool few = rows <= kFewRows;
  PackedMatrix out(few ? PackedKind::rows8 : PackedKind::w8, rows, cols, 0, Beside::nothing, context.arena);
  out.fill(context.pool, [&](std::int64_t row, std::uint8_t* lane) {
    for (std::int64_t col = 0; col < cols; ++col) {
      const auto code = static_cast<std::uint8_t>(values[static_cast<std::size_t>(row * cols + col)] + 128);
      lane[few ? col : col / 4 * out.lane_stride() + col % 4] = code;
    }
    out.row_scales_[row] = f16_to_f32(row_scales[static_cast<std::size_t>(row)]);
  });
  return out;
}

PackedMatrix PackedMatrix::round_to(PackedKind kind, const Tensor& tensor, const std::string& where,
                                    const PackContext& context) {
  require_matrix(tensor, where);
  const std::int64_t cols = tensor.dim(1);
  PackedMatrix out(kind, tensor.dim(0), cols, kRoundedGroup, Beside::nothing, context.arena);
  const int top = kind == PackedKind::w8 ? 127 : 7, zero = kind == PackedKind::w8 ? 128 : 8;
  out.fill(context.pool, [&](std::int64_t row, std::uint8_t* lane) {
    thread_local std::vector<float> values;
    values.resize(static_cast<std::size_t>(out.view_.depth));
    read_floats(tensor, row, values.data());
    std::fill(values.begin() + cols, values.end(), 0.0F);
    thread_local std::vector<std::uint8_t> codes;
    codes.resize(static_cast<std::size_t>(out.view_.depth));
    for (std::int64_t group = 0; group < out.view_.groups; ++group) {
      const std::int64_t col = group * kRoundedGroup;
      out.group_scales_[out.scale_index(row, group)] = round_group(values.data() + col, top, zero, codes.data() + col);
    }
    out.write_codes(codes.data(), lane);
  });
  return out;
}

PackedMatrix PackedMatrix::to_bf16(const Tensor& tensor, const std::string& where, const PackContext& context) {
  require_matrix(tensor, where);
  return bf16_of(
      tensor.dim(0), tensor.dim(1), [&](std::int64_t row, float* out) { read_floats(tensor, row, out); }, context);
}

PackedMatrix PackedMatrix::from_blocks(const BlockMatrix& matrix, const std::string& where,
                                       const PackContext& context) {
  const Matrix checked(matrix, where);
  if (find_gguf_codes(matrix.type->id) != nullptr) {
    if (auto out = codes_of(matrix, context)) return std::move(*out);
  }
  if (matrix.type->block_size == kRoundedGroup && matrix.type->second_half < 0) return integers_of(matrix, context);
  const auto read = [&](std::int64_t row, float* out) {
    matrix.dequantize_row(row, {out, static_cast<std::size_t>(matrix.cols)});
  };
  return bf16_of(matrix.rows, matrix.cols, read, context);
}

/// Blocks of 32 that are one F16 number times integers of at most 8 bits: Q8_0, Q6_0, Q5_0 (and Q4_0, which readers make a W4Matrix).
PackedMatrix PackedMatrix::integers_of(const BlockMatrix& matrix, const PackContext& context) {
  constexpr std::uint16_t kOne = 0x3c00;  // F16
  PackedMatrix out(PackedKind::w8, matrix.rows, matrix.cols, kRoundedGroup, Beside::nothing, context.arena);
  out.fill(context.pool, [&](std::int64_t row, std::uint8_t* lane) {
    thread_local std::vector<std::byte> blocks;
    thread_local std::vector<float> values;
    thread_local std::vector<std::uint8_t> codes;
    const std::byte* const stored = matrix.blocks.data() + row * matrix.row_bytes();
    blocks.assign(stored, stored + matrix.row_bytes());
    values.assign(static_cast<std::size_t>(out.view_.depth), 0.0F);
    for (std::int64_t group = 0; group < out.view_.groups; ++group) {
      std::uint16_t& scale = out.group_scales_[out.scale_index(row, group)];
      scale = 0;
      if (group >= matrix.cols / kRoundedGroup) continue;  // padding
      std::byte* const half = blocks.data() + group * matrix.type->block_bytes + matrix.type->first_half;
      std::memcpy(&scale, half, sizeof scale);
      std::memcpy(half, &kOne, sizeof kOne);
    }
    matrix.type->dequantize(blocks, values);  // with scales of 1: the integers
    codes.clear();
    for (const float value : values) codes.push_back(static_cast<std::uint8_t>(128 + static_cast<int>(value)));
    out.write_codes(codes.data(), lane);
  });
  return out;
}

/// Q4_1, Q5_1, Q4_K, Q5_K, Q6_K; empty if a scale or a minimum is beyond F16.
std::optional<PackedMatrix> PackedMatrix::codes_of(const BlockMatrix& matrix, const PackContext& context) {
  const GgufCodes& type = *find_gguf_codes(matrix.type->id);
  const bool minima_too = type.zero == 0;
  PackedMatrix out(type.bits == 4 ? PackedKind::w4 : PackedKind::w8, matrix.rows, matrix.cols, type.group,
                   minima_too ? Beside::minima : Beside::nothing, context.arena);
  constexpr float kLargestHalf = 65504;
  std::atomic<bool> fits = true;
  out.fill(context.pool, [&](std::int64_t row, std::uint8_t* lane) {
    thread_local std::vector<std::uint8_t> codes;
    thread_local std::vector<float> scales, minima;
    codes.assign(static_cast<std::size_t>(out.view_.depth), static_cast<std::uint8_t>(type.zero));
    scales.assign(static_cast<std::size_t>(out.view_.groups), 0.0F);  // of padding, too
    minima = scales;
    const std::byte* block = matrix.blocks.data() + row * matrix.row_bytes();
    for (std::int64_t col = 0; col < matrix.cols; col += type.block_size, block += type.block_bytes) {
      type.unpack(block, codes.data() + col, scales.data() + col / type.group, minima.data() + col / type.group);
    }
    for (std::int64_t group = 0; group < out.view_.groups; ++group) {
      const std::size_t at = out.scale_index(row, group);
      const float scale = scales[static_cast<std::size_t>(group)], minimum = minima[static_cast<std::size_t>(group)];
      out.group_scales_[at] = f32_to_f16(scale);
      if (minima_too) out.group_minima_[at] = f32_to_f16(minimum);
      if (!(std::abs(scale) <= kLargestHalf && std::abs(minimum) <= kLargestHalf)) fits = false;
    }
    if (!minima_too) {
      for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(code + 128 - type.zero);
    }
    out.write_codes(codes.data(), lane);
  });
  if (!fits) return std::nullopt;
  return out;
}

/// read(row, out): the values of a row.
PackedMatrix PackedMatrix::bf16_of(std::int64_t rows, std::int64_t cols,
                                   const std::function<void(std::int64_t, float*)>& read, const PackContext& context) {
  PackedMatrix out(PackedKind::bf16, rows, cols, 0, Beside::nothing, context.arena);
  out.fill(context.pool, [&](std::int64_t row, std::uint8_t* lane) {
    thread_local std::vector<float> values;
    values.resize(static_cast<std::size_t>(cols));
    read(row, values.data());
    for (std::int64_t col = 0; col < cols; ++col) {
      const std::uint16_t bits = f32_to_bf16(values[static_cast<std::size_t>(col)]);
      std::memcpy(lane + col / 2 * out.lane_stride() + col % 2 * 2, &bits, sizeof bits);
    }
  });
  return out;
}

PackedMatrix PackedMatrix::to_int8(const Tensor& tensor, const std::string& where, const PackContext& context) {
  return round_to(PackedKind::w8, tensor, where, context);
}

PackedMatrix PackedMatrix::head(const Tensor& tensor, HeadType type, const std::string& where,
                                const PackContext& context) {
  if (type == HeadType::bf16) return to_bf16(tensor, where, context);
  return round_to(type == HeadType::int8 ? PackedKind::w8 : PackedKind::w4, tensor, where, context);
}

PackedCompensator::PackedCompensator(const Compensator& source, const PackedView& weight, const std::string& where,
                                     WeightArena& arena) {
  const CompensatorGate& gate = source.gate;
  if (gate.hidden > kMaxGateHidden) {
    throw bad_input(fmt::format("a gate of {} hidden units; at most {} are supported", gate.hidden, kMaxGateHidden),
                    where, "recover the model again with a narrower gate");
  }
  const std::int64_t inputs = source.rank + source.gate_rows;
  const std::vector<float> vectors[] = {
      padded(floats(source.b_scales, f16_to_f32), 1, source.rank),
      padded(transposed(floats(gate.w1, bf16_to_f32), gate.hidden, inputs), inputs, gate.hidden),
      padded(floats(gate.b1, bf16_to_f32), 1, gate.hidden),
      padded(transposed(floats(gate.w2, bf16_to_f32), source.rank, gate.hidden), gate.hidden, source.rank),
      padded(floats(gate.b2, bf16_to_f32), 1, gate.hidden > 0 ? source.rank : 0)};
  const std::int64_t b_bytes = weight.panel_groups() * weight.group_rows() * source.rank;
  bytes_ = b_bytes;
  for (const auto& values : vectors) bytes_ += static_cast<std::int64_t>(values.size() * sizeof(float));
  memory_ = arena.allocate(static_cast<std::size_t>(bytes_));
  std::uint8_t* at = memory_.get();
  const float* placed[std::size(vectors)];  // whole vectors of 16 each
  for (std::size_t i = 0; i < std::size(vectors); ++i) {
    placed[i] = reinterpret_cast<const float*>(at);
    const std::size_t size = vectors[i].size() * sizeof(float);
    if (size > 0) std::memcpy(at, vectors[i].data(), size);
    at += size;
  }
  gate_ = {source.rank, inputs, gate.hidden, placed[0], placed[1], placed[2], placed[3], placed[4]};
  auto* const b = reinterpret_cast<std::int8_t*>(at);  // zero where there is no row
  for (std::int64_t row = 0; row < source.out_features; ++row) {
    for (std::int64_t r = 0; r < source.rank; ++r) {
      b[(row / kPanelRows * source.rank + r) * kPanelRows + row % kPanelRows] =
          source.b[static_cast<std::size_t>(row * source.rank + r)];
    }
  }
  b_ = b;
}

}  // namespace spear
