// Weights and compensators as the kernels use them: views of the model's bytes, plus the few floats made at load.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compensator/compensator.h"
#include "model/weights.h"
#include "ops/cpu/kernels.h"

namespace spear {

/// A WeightView and what it points at beyond the model's own bytes. Movable; the source must stay alive.
class Matrix {
 public:
  Matrix(Matrix&&) = default;
  Matrix& operator=(Matrix&&) = default;
  /// All throw Error(bad_input) naming `where` when sizes disagree or the dtype is none of f32, f16, bf16.
  Matrix(const Tensor& tensor, const std::string& where);
  Matrix(const W4Matrix& packed, const std::string& where);
  Matrix(const BlockMatrix& blocks, const std::string& where);
  Matrix(const LinearWeight& weight, const std::string& where);
  /// int8 with a scale per row (f16 bits, [rows]), or without scales.
  Matrix(std::span<const std::int8_t> values, std::int64_t rows, std::int64_t cols,
         std::span<const std::uint16_t> row_scales);

  const WeightView& view() const { return view_; }

 private:
  WeightView view_;
  std::vector<float> scales_;
  std::vector<std::byte> aligned_;  ///< copy of a tensor that a file held at an odd address
};

/// The gate and B of one compensator; A may be shared with other modules.
struct PreparedCompensator {
  const CompensatorInput* a = nullptr;
  std::int64_t rank = 0, inputs = 0, hidden = 0;  ///< inputs: rank + gate rows
  Matrix b;                                       ///< [out_features, rank], codes without scales
  std::vector<float> b_scales;                    ///< [rank]
  std::vector<float> w1, b1, w2, b2;              ///< [hidden, inputs], [hidden], [rank, hidden], [rank]

  explicit PreparedCompensator(const Compensator& source);

  /// weighted[r] = g_r(z) z_r s_r, with s the scales of B.  z: [inputs], weighted: [rank], scratch: [hidden].
  void weigh(const float* z, float* weighted, float* scratch) const;
};

}  // namespace spear
