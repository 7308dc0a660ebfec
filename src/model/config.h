// What a decoder of the Llama family is made of, and the names of its linear modules.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace spear {

/// Field names are those of Hugging Face's config.json.
struct ModelConfig {
  std::string model_type = "llama";
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = false;
  std::int64_t bos_token_id = -1;  ///< -1: none
  std::vector<std::int64_t> eos_token_ids;

  std::int64_t q_size() const { return num_attention_heads * head_dim; }
  std::int64_t kv_size() const { return num_key_value_heads * head_dim; }
  /// Throws Error(bad_input) naming the field that makes no sense; `where` is the file.
  void validate(const std::string& where) const;
};

enum class LinearKind : int { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj };
inline constexpr int kLinearsPerLayer = 7;
inline constexpr std::array<const char*, kLinearsPerLayer> kLinearNames = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

/// A linear module: index = layer * 7 + kind.
struct ModuleId {
  int index = 0;

  static ModuleId of(std::int64_t layer, LinearKind kind) {
    return {static_cast<int>(layer) * kLinearsPerLayer + static_cast<int>(kind)};
  }
  int layer() const { return index / kLinearsPerLayer; }
  LinearKind kind() const { return static_cast<LinearKind>(index % kLinearsPerLayer); }
  /// "model.layers.3.mlp.up_proj"
  std::string name() const;
  /// First module of those that read the same input (q for q, k, v; gate for gate, up): owner of a shared A.
  ModuleId input_group() const;

  bool operator==(const ModuleId&) const = default;
};

int module_count(const ModelConfig& config);
std::int64_t in_features(const ModelConfig& config, LinearKind kind);
std::int64_t out_features(const ModelConfig& config, LinearKind kind);

}  // namespace spear
