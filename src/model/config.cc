#include "model/config.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"

namespace spear {

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
  if (!(rope_theta > 1 && std::isfinite(rope_theta))) throw bad_input(fmt::format("rope_theta = {}", rope_theta), where);
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
