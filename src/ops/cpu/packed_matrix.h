// Weights repacked into kernel order at load (packed_kernels.h), and what a compensator needs beside them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "compensator/compensator.h"
#include "model/weights.h"
#include "ops/cpu/packed_kernels.h"
#include "ops/cpu/weight_arena.h"
#include "ops/cpu_model.h"

namespace spear {

/// Where weights are packed, and by whom.
struct PackContext {
  ThreadPool& pool;
  WeightArena& arena;
};

/// Owns a PackedView's memory, or its part of an arena. Movable.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// Codes, scales and zero points as they are, columns in the order of m.columns_by_group() if that is not empty:
  /// inputs must then come in the same order. Throws Error(bad_input) naming `where` when sizes disagree.
  static PackedMatrix from_w4(const W4Matrix& matrix, const std::string& where, const PackContext& context);
  /// Codes as they are, with a scale and, where the type has one, a minimum per 32 columns (Q6_K: 16): Q4_1 and Q4_K as w4,
  /// others (Q5_0, Q5_1, Q5_K, Q6_0, Q6_K, Q8_0) as w8; Q4_0 is a W4Matrix elsewhere. Exact, but for K-types' scales and minima, which
  /// become F16. Values of other types, and of matrices with scales beyond F16, are rounded to bf16.
  static PackedMatrix from_blocks(const BlockMatrix& matrix, const std::string& where, const PackContext& context);
  /// int8 values [rows, cols] with a scale per row (f16 bits).
  static PackedMatrix from_int8(std::span<const std::int8_t> values, std::int64_t rows, std::int64_t cols,
                                std::span<const std::uint16_t> row_scales, const PackContext& context);
  /// f32, f16 or bf16 rounded to 8 bit with an f16 scale per 32 columns: scale = f16(max|w| / 127), what Q8_0 does, so
  /// that a matrix that was shipped in Q8_0 keeps its values.
  static PackedMatrix to_int8(const Tensor& tensor, const std::string& where, const PackContext& context);
  /// Rounded to bf16 (bf16 tensors stay as they are).
  static PackedMatrix to_bf16(const Tensor& tensor, const std::string& where, const PackContext& context);
  /// The same in the type asked for; w4 is rounded to nearest, symmetric, with an f16 scale per 32 columns.
  static PackedMatrix head(const Tensor& tensor, HeadType type, const std::string& where, const PackContext& context);

  const PackedView& view() const { return view_; }
  bool empty() const { return view_.data == nullptr; }
  std::int64_t bytes() const { return bytes_; }  ///< of codes, scales and zero points: what one product reads

 private:
  /// What belongs to groups beside their scales.
  enum class Beside { nothing, zeros, minima };
  PackedMatrix(PackedKind kind, std::int64_t rows, std::int64_t cols, std::int64_t group_size, Beside beside,
               WeightArena& arena);
  static PackedMatrix round_to(PackedKind kind, const Tensor& tensor, const std::string& where,
                               const PackContext& context);
  static std::optional<PackedMatrix> codes_of(const BlockMatrix& matrix, const PackContext& context);
  static PackedMatrix integers_of(const BlockMatrix& matrix, const PackContext& context);
  static PackedMatrix bf16_of(std::int64_t rows, std::int64_t cols,
                              const std::function<void(std::int64_t, float*)>& read, const PackContext& context);
  template <class Write>
  void fill(ThreadPool& pool, Write write);
  std::int64_t lane_stride() const { return 64 * view_.group_panels; }
  std::size_t scale_index(std::int64_t row, std::int64_t group) const;
  /// codes: [depth] unsigned, of the row whose lane this is.
  void write_codes(const std::uint8_t* codes, std::uint8_t* lane) const;

  PackedView view_;
  std::shared_ptr<std::uint8_t> memory_;  ///< codes, then what the pointers below are into
  float* row_scales_ = nullptr;
  std::uint16_t* group_scales_ = nullptr;
  std::uint16_t* group_minima_ = nullptr;
  std::uint8_t* zeros_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// B and the gate of one compensator, for outputs that lie as those of its weight do. Movable; views stay valid.
class PackedCompensator {
 public:
  /// Throws Error(bad_input) for a gate wider than kMaxGateHidden.
  PackedCompensator(const Compensator& source, const PackedView& weight, const std::string& where, WeightArena& arena);

  const GateView& gate() const { return gate_; }
  LowRankView low_rank(const float* weighted) const { return {b_, gate_.rank, weighted}; }
  std::int64_t bytes() const { return bytes_; }  ///< of B and gate as held here

 private:
  std::shared_ptr<std::uint8_t> memory_;  ///< the gate's vectors, which are read first, then B
  const std::int8_t* b_ = nullptr;        ///< [panels][rank][16]
  GateView gate_;
  std::int64_t bytes_ = 0;
};

}  // namespace spear
