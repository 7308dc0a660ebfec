// The model whose files the fuzzers of checkpoints change; fuzz/make_seeds.py knows its sizes.
#pragma once

#include "model/weights.h"

namespace spear::fuzz {

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 8;
  config.vocab_size = 8;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 1e-5;
  config.tie_word_embeddings = true;
  return config;
}

/// Dense, all zeros.
inline ModelWeights tiny_model() {
  ModelWeights weights;
  weights.config = tiny_config();
  const ModelConfig& config = weights.config;
  weights.embed_tokens = Tensor(DType::f32, {config.vocab_size, config.hidden_size});
  weights.layers.resize(1);
  for (const NormId id : norms_of(config)) weights.gain(id) = Tensor(DType::f32, {norm_size(config, id)});
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    weights.linear(id).weight = Tensor(DType::f32, {out_features(config, id.kind()), in_features(config, id.kind())});
  }
  return weights;
}

}  // namespace spear::fuzz
