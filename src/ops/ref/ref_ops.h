// The reference backend of model/transformer.h: plain scalar loops in float64 on dequantized weights, no cache, no
// threads. Slow, and what every kernel is held to.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "model/forward_model.h"
#include "model/stream_rotation.h"
#include "model/transformer.h"
#include "model/weights.h"

namespace spear {

/// A row-major [rows, cols] matrix.
struct RefMatrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;

  RefMatrix() = default;
  RefMatrix(std::int64_t rows, std::int64_t cols)
      : rows(rows), cols(cols), values(static_cast<std::size_t>(rows * cols)) {}
  double& at(std::int64_t i, std::int64_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double at(std::int64_t i, std::int64_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

namespace ref {

RefMatrix dequantize(const LinearWeight& weight);
/// x: [m, k], w: [n, k] -> [m, n].
RefMatrix linear(const RefMatrix& x, const RefMatrix& w);
/// Each row / sqrt(mean of squares + eps) ⊙ gain.
RefMatrix rms_norm(const RefMatrix& x, std::span<const float> gain, double eps);
/// Rotates the pairs (i, i + head_dim / 2) of every head by position * frequencies[i]; row r stands at position
/// first + r % length.
void rotate(RefMatrix& x, std::int64_t head_dim, std::span<const double> frequencies, std::int64_t first,
            std::int64_t length);
/// Causal softmax attention of sequences of `length` rows, without rotary; q: [rows, heads * head_dim], k and v:
/// [rows, kv_heads * head_dim]. Query head h reads key head h / (heads / kv_heads). Scores are multiplied by `scale`;
/// a token sees the last `window` tokens, or all if that is 0.
RefMatrix attention(const RefMatrix& q, const RefMatrix& k, const RefMatrix& v, std::int64_t length,
                    std::int64_t head_dim, double scale, std::int64_t window = 0);
/// act(gate) ⊙ up.
RefMatrix gated_act(const RefMatrix& gate, const RefMatrix& up, HiddenAct act);
/// y += B (g(z) ⊙ z) row by row, by the functions of compensator/compensator.h.
void add_correction(const Compensator& compensator, const RefMatrix& x, RefMatrix& y);

}  // namespace ref

class RefOps {
 public:
  using Activation = RefMatrix;
  using Batch = TokenBatch;

  explicit RefOps(const ModelWeights& weights, bool compensators = true)
      : weights_(weights), compensators_(compensators) {}

  Stream<RefOps> embed(const Batch& batch, NormId gain);
  template <std::size_t N>
  std::array<Activation, N> linears(const Activation& x, const std::array<ModuleId, N>& ids) {
    std::array<Activation, N> out;
    for (std::size_t i = 0; i < N; ++i) out[i] = linear(x, ids[i]);
    return out;
  }
  Activation attention(std::int64_t layer, Activation q, Activation k, Activation v, Batch& batch);
  Activation gated_act(Activation gate, Activation up) { return ref::gated_act(gate, up, weights_.config.hidden_act); }
  Stream<RefOps> linear_tail(Activation y, const Tail& tail, Stream<RefOps> stream);
  void observe(std::string_view, std::int64_t, const Activation&) {}

 private:
  Activation linear(const Activation& x, ModuleId id);
  Activation normalize(const Activation& x, NormId gain);
  Activation rotated(const Activation& x, void (StreamRotation::*way)(const float*, float*) const) const;

  const ModelWeights& weights_;
  bool compensators_;
};

}  // namespace spear
