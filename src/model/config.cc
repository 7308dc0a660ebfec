#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace spear {
namespace {

/// Of the rotation's cosine transform, whose table is its square (stream_rotation.h); models have 1 to 15.
constexpr std::int64_t kLargestOddFactor = 511;

bool small_odd_factor(std::int64_t n) { return n / (n & -n) <= kLargestOddFactor; }

}  // namespace

void ModelConfig::validate(const std::string& where) const {
  const auto positive = [&](const char* field, std::int64_t value, std::int64_t limit) {
    if (value < 1 || value > limit) {
      throw bad_input(fmt::format("{} = {} is outside 1..{}", field, value, limit), where, "check the model's config");
    }
  };
  positive("hidden_size", hidden_size, 1 << 20);
  positive("intermediate_size", intermediate_size, 1 << 22);
  positive("num_hidden_layers", num_hidden_layers, 4096);
  positive("num_attention_heads", num_attention_heads, 4096);
  positive("num_key_value_heads", num_key_value_heads, num_attention_heads);
  positive("head_dim", head_dim, 1 << 14);
  positive("vocab_size", vocab_size, 1 << 24);
  positive("max_position_embeddings", max_position_embeddings, std::int64_t{1} << 32);
  if (num_attention_heads % num_key_value_heads != 0) {
    throw bad_input(fmt::format("num_attention_heads = {} is not a multiple of num_key_value_heads = {}",
                                num_attention_heads, num_key_value_heads), where);
  }
  if (head_dim % 2 != 0) throw bad_input(fmt::format("head_dim = {} is odd; rotary needs pairs", head_dim), where);
  if (!(rms_norm_eps > 0 && rms_norm_eps < 1)) throw bad_input(fmt::format("rms_norm_eps = {}", rms_norm_eps), where);
  const auto check = [&](bool sound, const char* field, double value) {
    if (!sound || !std::isfinite(value)) throw bad_input(fmt::format("{} = {}", field, value), where);
  };
  check(rope_theta > 1, "rope_theta", rope_theta);
  check(rope_local_theta == 0 || rope_local_theta > 1, "rope_local_base_freq", rope_local_theta);
  check(query_pre_attn_scalar >= 0, "query_pre_attn_scalar", query_pre_attn_scalar);
  check(embedding_scale > 0, "embedding_scale", embedding_scale);
  if (rotated_stream && output_norms) throw bad_input("a rotated stream beside norms of outputs", where);
  if (rotated_stream && !small_odd_factor(hidden_size)) {
    throw bad_input(fmt::format("a rotated stream of hidden_size = {}, whose odd factor is above {}", hidden_size, kLargestOddFactor), where,
                    "quantize this model with --rotate none");
  }
  const RopeScaling& scaling = rope_scaling;
  check(scaling.factor >= 1, "rope_scaling.factor", scaling.factor);
  check(scaling.low_freq_factor > 0, "rope_scaling.low_freq_factor", scaling.low_freq_factor);
  check(scaling.high_freq_factor > scaling.low_freq_factor, "rope_scaling.high_freq_factor", scaling.high_freq_factor);
  positive("rope_scaling.original_max_position_embeddings", scaling.original_max_position_embeddings,
           std::int64_t{1} << 32);
  if (local_layers.empty()) return;
  if (static_cast<std::int64_t>(local_layers.size()) != num_hidden_layers) {
    throw bad_input(fmt::format("layer_types names {} layers of {}", local_layers.size(), num_hidden_layers), where);
  }
  positive("sliding_window", sliding_window, std::int64_t{1} << 32);
}

bool ModelConfig::can_rotate_stream() const { return !output_norms && !rotated_stream && small_odd_factor(hidden_size); }

double ModelConfig::attention_scale() const {
  return 1.0 / std::sqrt(query_pre_attn_scalar > 0 ? query_pre_attn_scalar : static_cast<double>(head_dim));
}

std::vector<double> ModelConfig::rope_frequencies(bool local) const {
  const bool own = local && rope_local_theta > 0;
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < head_dim / 2; ++i) {
    const double f = std::pow(own ? rope_local_theta : rope_theta,
                              -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    double stretched = f;
    if (!own && rope_scaling.type == RopeScaling::Type::linear) stretched = f / rope_scaling.factor;
    if (!own && rope_scaling.type == RopeScaling::Type::llama3) {
      const double turns = static_cast<double>(rope_scaling.original_max_position_embeddings) * f / (2 * M_PI);
      const double low = rope_scaling.low_freq_factor, high = rope_scaling.high_freq_factor;
      const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
      stretched = (1 - kept) * f / rope_scaling.factor + kept * f;
    }
    frequencies.push_back(stretched);
  }
  return frequencies;
}

std::string NormId::name(const ModelConfig& config) const {
  if (*this == final(config)) return "model.norm";
  // Gemma's four norms; who has two calls the MLP's first one after what precedes it.
  const char* before_mlp = config.output_norms ? "pre_feedforward_layernorm" : "post_attention_layernorm";
  const std::array<const char*, kNormsPerLayer> names = {"input_layernorm",           before_mlp,
                                                         "post_attention_layernorm",  "post_feedforward_layernorm",
                                                         "self_attn.q_norm",          "self_attn.k_norm"};
  return fmt::format("model.layers.{}.{}", layer(), names[static_cast<std::size_t>(kind())]);
}

std::vector<NormId> norms_of(const ModelConfig& config) {
  std::vector<NormId> ids;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    ids.insert(ids.end(), {NormId::input(layer), NormId::post_attention(layer)});
    if (config.output_norms) {
      ids.insert(ids.end(), {NormId::of(layer, NormKind::attention_output), NormId::of(layer, NormKind::mlp_output)});
    }
    if (config.qk_norm) ids.insert(ids.end(), {NormId::of(layer, NormKind::q), NormId::of(layer, NormKind::k)});
  }
  ids.push_back(NormId::final(config));
  return ids;
}

std::int64_t norm_size(const ModelConfig& config, NormId id) {
  return id.kind() == NormKind::q || id.kind() == NormKind::k ? config.head_dim : config.hidden_size;
}

bool has_bias(const ModelConfig& config, LinearKind kind) {
  switch (kind) {
    case LinearKind::q_proj:
    case LinearKind::k_proj:
    case LinearKind::v_proj: return config.qkv_bias;
    case LinearKind::o_proj: return config.o_bias;
    default: return config.mlp_bias;
  }
}

std::string ModuleId::name() const {
  return fmt::format("model.layers.{}.{}", layer(), kLinearNames[static_cast<std::size_t>(kind())]);
}

ModuleId ModuleId::input_group() const {
  switch (kind()) {
    case LinearKind::k_proj:
    case LinearKind::v_proj: return of(layer(), LinearKind::q_proj);
    case LinearKind::up_proj: return of(layer(), LinearKind::gate_proj);
    default: return *this;
  }
}

int module_count(const ModelConfig& config) { return static_cast<int>(config.num_hidden_layers) * kLinearsPerLayer; }

std::int64_t in_features(const ModelConfig& config, LinearKind kind) {
  if (kind == LinearKind::o_proj) return config.q_size();
  return kind == LinearKind::down_proj ? config.intermediate_size : config.hidden_size;
}

std::int64_t out_features(const ModelConfig& config, LinearKind kind) {
  switch (kind) {
    case LinearKind::q_proj: return config.q_size();
    case LinearKind::k_proj:
    case LinearKind::v_proj: return config.kv_size();
    case LinearKind::gate_proj:
    case LinearKind::up_proj: return config.intermediate_size;
    default: return config.hidden_size;
  }
}

}  // namespace spear
