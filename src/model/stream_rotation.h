// The residual stream in another basis: what a network computes stays as it is, and its weights are easier to round,
// because outliers of single channels spread over all of them (the idea of QuaRot and SpinQuant).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/weights.h"

namespace spear {

/// The orthogonal Q [n, n] of a stream of n channels: signs (− where the top bit of splitmix64's finalizer of i is set), then a cosine transform over n's odd part m and a Hadamard
/// transform over its power of two p: Q = diag(s) (C ⊗ H), C the transposed orthonormal DCT-II of m, H the Hadamard matrix
/// of p over √p. A function of n alone. Costs n (m + log2 p) multiplications or additions per vector.
class StreamRotation {
 public:
  explicit StreamRotation(std::int64_t size);

  std::int64_t size() const { return odd_ * power_; }
  /// out = x Q: an embedding on its way into the stream. x and out: [size], apart.
  void into_stream(const float* x, float* out) const;
  /// out = x Qᵀ: the stream on its way to the final norm.
  void out_of_stream(const float* x, float* out) const;
  /// Q, row after row.
  std::vector<float> matrix() const;

 private:
  std::int64_t odd_, power_;
  std::vector<float> signs_;   ///< ±1 / √p, [size]
  std::vector<float> cosine_;  ///< DCT-II, [odd, odd]
};

/// A layer of rotate_stream(weights): Q folded into all linears that read or write the stream, and the gains of the norms
/// before them, which become 1. In f32, or the 16-bit type that a weight has.
LayerWeights rotate_layer(const ModelWeights& weights, std::int64_t layer);

/// `weights` with its stream rotated (ModelConfig::rotated_stream). Embedding, head and final norm stay, for backends rotate
/// at both ends. Layers are rotate_layer()'s, or what `layer_of` has in their place. Throws Error(bad_input) for families
/// with norms between a module's output and the stream, whose gains no rotation passes.
ModelWeights rotate_stream(const ModelWeights& weights, const std::function<LayerWeights(std::int64_t layer)>& layer_of = nullptr);

/// A model with a rotated stream as an ordinary one that any program runs: the rotation and the final gain folded into
/// an embedding and a head that are no longer tied. Unchanged if its stream is not rotated.
ModelWeights fold_stream_rotation(ModelWeights weights);

}  // namespace spear
