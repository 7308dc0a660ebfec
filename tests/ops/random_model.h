// Small random models and matrices for tests of kernels, engine and command line.
#pragma once

#include <cstdint>
#include <vector>

#include "base/random.h"
#include "model/weights.h"

namespace spear::testing {

std::vector<float> random_floats(std::int64_t count, std::uint64_t seed, double scale = 1.0);

/// The columns of a matrix in groups at random, as act-order leaves them; all columns stay where they are.
void shuffle_groups(W4Matrix& matrix, std::uint64_t seed);
/// Random bytes as blocks of `type`, with scales that keep values near `size`.
BlockMatrix random_blocks(std::int64_t rows, std::int64_t cols, const char* type, std::uint64_t seed,
                          double size = 1.0);
/// Codes, scales and zeros drawn at random; dequantized weights are about `size`.
W4Matrix random_w4(std::int64_t rows, std::int64_t cols, const W4Scheme& scheme, std::uint64_t seed, double size = 1.0);

Compensator random_compensator(std::int64_t rank, std::int64_t gate_rows, std::int64_t hidden, std::int64_t out,
                               std::shared_ptr<const CompensatorInput> a, std::uint64_t seed);
std::shared_ptr<const CompensatorInput> random_input(std::int64_t rows, std::int64_t cols, std::uint64_t seed);

struct RandomModelOptions {
  std::int64_t hidden = 24, intermediate = 44, layers = 2, heads = 6, kv_heads = 2, head_dim = 4, vocabulary = 61;
  bool packed = true;        ///< linears in W4, else in `dense`
  DType dense = DType::f32;  ///< of embedding, head and dense linears
  W4Scheme scheme;
  bool tied = true;
  bool compensators = false;  ///< on every module but k; q, v and gate, up share an A; every second has a gate
  /// All that families add at once: biases, norms of q, k and outputs, GeLU, local layers with a rotation of their own
  /// (all but the last), Llama 3's scaling, factors of scores and embeddings.
  bool every_option = false;
  std::uint64_t seed = 1;
};
ModelWeights random_model(const RandomModelOptions& options = {});

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed);

}  // namespace spear::testing
