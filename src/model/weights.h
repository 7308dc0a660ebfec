// A model in host memory, as read from or written to disk, whatever the file format was.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "compensator/compensator.h"
#include "model/config.h"
#include "tensor/block_matrix.h"
#include "tensor/tensor.h"
#include "tensor/w4.h"

namespace spear {

/// [out_features, in_features], dense (f32, f16, bf16), packed 4-bit, or blocks of a GGUF file.
using LinearWeight = std::variant<Tensor, W4Matrix, BlockMatrix>;

Shape shape_of(const LinearWeight& weight);
std::vector<float> dequantize(const LinearWeight& weight);  ///< [rows, cols], exact

struct LinearModule {
  LinearWeight weight;
  Tensor bias;  ///< [out_features]; empty when there is none
  std::optional<Compensator> compensator;
};

struct LayerWeights {
  Tensor input_layernorm;                ///< [hidden_size]
  Tensor post_attention_layernorm;       ///< [hidden_size], before the MLP
  Tensor attention_output, mlp_output;   ///< [hidden_size], with ModelConfig::output_norms
  Tensor q_norm, k_norm;                 ///< [head_dim], with ModelConfig::qk_norm
  std::array<LinearModule, kLinearsPerLayer> linears;
};

/// Gains are what the normalized value is multiplied by: readers add the 1 that Gemma's files leave out.
struct ModelWeights {
  ModelConfig config;
  Tensor embed_tokens;  ///< [vocab_size, hidden_size]
  Tensor lm_head;       ///< [vocab_size, hidden_size]; empty when tied to embed_tokens
  Tensor norm;          ///< [hidden_size]
  std::vector<LayerWeights> layers;

  /// Bytes of embedding plus head as the budget counts them: min(as shipped, 8 bit), tied counted once.
  std::int64_t embedding_budget_bytes = 0;

  const Tensor& head() const { return lm_head.empty() ? embed_tokens : lm_head; }
  LinearModule& linear(ModuleId id) {
    return layers.at(static_cast<std::size_t>(id.layer())).linears.at(static_cast<std::size_t>(id.kind()));
  }
  const LinearModule& linear(ModuleId id) const {
    return layers.at(static_cast<std::size_t>(id.layer())).linears.at(static_cast<std::size_t>(id.kind()));
  }
  /// Empty if the model has no such norm.
  const Tensor& gain(NormId id) const;
  Tensor& gain(NormId id) { return const_cast<Tensor&>(std::as_const(*this).gain(id)); }

  /// Throws Error(bad_input) naming the tensor whose shape disagrees with the config or that holds NaN or infinity.
  void validate(const std::string& where) const;
};

/// The denominator of the budget (design §2): packed linears + scales + embedding and head at min(as shipped, 8 bit).
/// Dense linears are counted as if packed in `scheme`, those in blocks with the bytes they have.
std::int64_t budget_base_bytes(const ModelWeights& weights, const W4Scheme& scheme);

/// Bytes of all compensators, shared parts counted once.
std::int64_t compensator_bytes(const ModelWeights& weights);

/// 8 bit per weight plus one f16 scale per 32, the size of a Q8_0 matrix.
std::int64_t int8_matrix_bytes(std::int64_t rows, std::int64_t cols);

}  // namespace spear
