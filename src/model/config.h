// What a decoder of one of the supported families is made of, and the names of its linear modules and norms.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace spear {

enum class HiddenAct { silu, gelu_tanh };

/// How rotary frequencies f are stretched. linear: f / factor. llama3: f / factor where a turn is longer than
/// original / low_freq_factor, f where it is shorter than original / high_freq_factor, a blend between.
struct RopeScaling {
  enum class Type { none, linear, llama3 };
  Type type = Type::none;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;
  std::int64_t original_max_position_embeddings = 8192;

  bool operator==(const RopeScaling&) const = default;
};

/// Field names are those of Hugging Face's config.json where it has one for the thing.
struct ModelConfig {
  std::string model_type = "llama";  ///< llama, mistral, qwen2, qwen3, gemma3_text: only readers and writers ask
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
  RopeScaling rope_scaling;
  double rope_local_theta = 0;  ///< of local layers, which are not scaled then; 0: they rotate as the others do
  std::int64_t sliding_window = 0;  ///< of local layers: a token sees this many tokens, itself included
  std::vector<bool> local_layers;   ///< by layer; empty: none is local
  double query_pre_attn_scalar = 0;  ///< scores are divided by its root; 0: head_dim
  HiddenAct hidden_act = HiddenAct::silu;
  double embedding_scale = 1;  ///< embeddings are multiplied by it on their way in
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;        ///< every head of q and k goes through an RMSNorm before it is rotated
  bool output_norms = false;   ///< so do the outputs of attention and MLP before they are added
  bool tie_word_embeddings = false;
  bool rotated_stream = false;  ///< model/stream_rotation.h: rotated behind the embedding, and back before the final norm
  std::int64_t bos_token_id = -1;  ///< -1: none
  std::vector<std::int64_t> eos_token_ids;

  std::int64_t q_size() const { return num_attention_heads * head_dim; }
  std::int64_t kv_size() const { return num_key_value_heads * head_dim; }
  bool is_local(std::int64_t layer) const {
    return !local_layers.empty() && local_layers[static_cast<std::size_t>(layer)];
  }
  /// Tokens that a token of this layer sees at most, itself included; 0: all before it.
  std::int64_t window(std::int64_t layer) const { return is_local(layer) ? sliding_window : 0; }
  /// Whether model/stream_rotation.h can rotate its stream: it is not yet, no norm stands between it and what is added
  /// to it, and the odd factor of hidden_size is small.
  bool can_rotate_stream() const;
  double attention_scale() const;  ///< 1 / sqrt(query_pre_attn_scalar)
  /// Radians per position of each rotary pair, [head_dim / 2].
  std::vector<double> rope_frequencies(bool local) const;
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

/// post_attention precedes the MLP whatever the family calls it (docs/formats.md has Gemma's names).
enum class NormKind : int { input, post_attention, attention_output, mlp_output, q, k };
inline constexpr int kNormsPerLayer = 6;

/// An RMSNorm gain: index = layer * 6 + kind, then the final one. Not every model has every kind.
struct NormId {
  int index = 0;

  static NormId of(std::int64_t layer, NormKind kind) {
    return {static_cast<int>(layer) * kNormsPerLayer + static_cast<int>(kind)};
  }
  static NormId input(std::int64_t layer) { return of(layer, NormKind::input); }
  static NormId post_attention(std::int64_t layer) { return of(layer, NormKind::post_attention); }
  static NormId final(const ModelConfig& config) { return of(config.num_hidden_layers, NormKind::input); }

  int layer() const { return index / kNormsPerLayer; }  ///< num_hidden_layers for the final one
  NormKind kind() const { return static_cast<NormKind>(index % kNormsPerLayer); }
  /// "model.layers.3.input_layernorm": Hugging Face's name in the model's family.
  std::string name(const ModelConfig& config) const;

  bool operator==(const NormId&) const = default;
};

/// Every norm that the model has, the final one last.
std::vector<NormId> norms_of(const ModelConfig& config);
std::int64_t norm_size(const ModelConfig& config, NormId id);

bool has_bias(const ModelConfig& config, LinearKind kind);

int module_count(const ModelConfig& config);
std::int64_t in_features(const ModelConfig& config, LinearKind kind);
std::int64_t out_features(const ModelConfig& config, LinearKind kind);

}  // namespace spear
