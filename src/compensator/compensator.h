// The compensator (design §2), defined once:  y = Ŵ x + B (g(z) ⊙ z),  z = A x,
//   g(z) = 1 + tanh(W2 silu(W1 u + b1) + b2),   u = A_all x / σ  (σ folded into W1 when stored).
// A_all holds A's `rank` rows and, optionally, `gate_rows` further rows of which only the gate takes notice.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace spear {

/// A: rows are scaled; stored int8 with one f16 scale per row. May be shared by modules that read the same input.
struct CompensatorInput {
  std::int64_t rows = 0, cols = 0;     ///< rank + gate_rows, in_features
  std::vector<std::int8_t> values;     ///< [rows, cols]
  std::vector<std::uint16_t> scales;   ///< f16 bits, [rows]

  std::int64_t storage_bytes() const { return rows * cols + 2 * rows; }
};

/// How many of `count` compensators a density (0 to 1) keeps: rounded up.
std::size_t compensators_at(double density, std::size_t count);

/// The gate's MLP in bf16; absent (hidden == 0) means g ≡ 1.
struct CompensatorGate {
  std::int64_t hidden = 0;
  std::vector<std::uint16_t> w1;  ///< bf16 bits, [hidden, rank + gate_rows]
  std::vector<std::uint16_t> b1;  ///< [hidden]
  std::vector<std::uint16_t> w2;  ///< [rank, hidden]
  std::vector<std::uint16_t> b2;  ///< [rank]

  std::int64_t storage_bytes() const {
    return 2 * static_cast<std::int64_t>(w1.size() + b1.size() + w2.size() + b2.size());
  }
};

struct Compensator {
  std::int64_t rank = 0, gate_rows = 0;
  std::int64_t out_features = 0;
  std::shared_ptr<const CompensatorInput> a;  ///< shared pointers mean shared bytes
  std::vector<std::int8_t> b;                 ///< [out_features, rank]
  std::vector<std::uint16_t> b_scales;        ///< f16 bits, one per column: [rank]
  CompensatorGate gate;

  std::int64_t in_features() const { return a ? a->cols : 0; }
  /// Bytes of B and the gate; A is counted by its owner (see compensator_bytes).
  std::int64_t own_bytes() const {
    return static_cast<std::int64_t>(b.size()) + 2 * rank + gate.storage_bytes();
  }
  /// Throws Error(bad_input) if sizes disagree with each other or a scale is not finite.
  void validate() const;
};

/// Every byte of a set of compensators, each shared A counted once.
std::int64_t compensator_bytes(std::span<const Compensator* const> compensators);

/// Reference: z_all = A_all x.  x: [in_features], z: [rank + gate_rows].
void project(const CompensatorInput& a, std::span<const float> x, std::span<float> z);

/// Reference: g = 1 + tanh(W2 silu(W1 z_all + b1) + b2).  z_all: [rank + gate_rows], g: [rank]; ones without a gate.
void gate_values(const Compensator& compensator, std::span<const float> z_all, std::span<float> g);

/// Reference: y += B (g(z) ⊙ z).  z_all as above, y: [out_features].
void add_correction(const Compensator& compensator, std::span<const float> z_all, std::span<float> y);

/// Symmetric int8 with one f16 scale per row: s = f16(max|v| / 127), q = round(v / s) in −127..127. An all-zero row has scale 0.
void quantize_rows_int8(std::span<const float> values, std::int64_t rows, std::int64_t cols, std::vector<std::int8_t>& out,
                        std::vector<std::uint16_t>& scales);

}  // namespace spear
