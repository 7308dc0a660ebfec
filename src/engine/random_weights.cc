#include "engine/random_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/progress.h"
#include "base/resources.h"

namespace spear {
namespace {

struct Shape4 {
  const char* name;
  std::int64_t layers, hidden, intermediate, heads, kv_heads, head_dim;
};
constexpr Shape4 kShapes[] = {{"smollm2-135m", 30, 576, 1536, 9, 3, 64},
                              {"llama-1b", 16, 2048, 8192, 32, 8, 64},
                              {"llama-3b", 28, 3072, 8192, 24, 8, 128},
                              {"llama-7b", 32, 4096, 11008, 32, 32, 128}};

/// splitmix64: fills gigabytes in seconds.
class Bits {
 public:
  explicit Bits(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  /// About normal with deviation 1: the sum of 8 bytes.
  float normal() {
    std::uint64_t bits = next();
    int sum = 0;
    for (int i = 0; i < 8; ++i, bits >>= 8) sum += static_cast<int>(bits & 255U);
    return (static_cast<float>(sum) - 1020.0F) / 209.0F;
  }

 private:
  std::uint64_t state_;
};

W4Matrix random_w4(std::int64_t rows, std::int64_t cols, const W4Scheme& scheme, Bits& bits) {
  W4Matrix m{rows, cols, scheme, {}, {}, {}};
  m.packed.resize(static_cast<std::size_t>(rows * m.words_per_row()));
  for (auto& word : m.packed) word = static_cast<std::uint32_t>(bits.next());
  const float scale = 0.2F / std::sqrt(static_cast<float>(cols));
  m.scales.assign(static_cast<std::size_t>(rows * m.groups()), f32_to_f16(scale));
  if (!scheme.symmetric) m.zeros.assign(m.scales.size(), 8);
  return m;
}

Tensor random_bf16(std::int64_t rows, std::int64_t cols, Bits& bits) {
  Tensor out(DType::bf16, {rows, cols});
  for (auto& value : out.mutable_as<std::uint16_t>()) value = f32_to_bf16(bits.normal());
  return out;
}

void fill_gate(CompensatorGate& gate, std::int64_t hidden, std::int64_t rank, Bits& bits) {
  gate.hidden = hidden;
  const auto fill = [&](std::vector<std::uint16_t>& part, std::int64_t count) {
    part.resize(static_cast<std::size_t>(count));
    for (auto& value : part) value = f32_to_bf16(0.3F * bits.normal());
  };
  fill(gate.w1, hidden * rank);
  fill(gate.b1, hidden);
  fill(gate.w2, hidden * rank);
  fill(gate.b2, hidden > 0 ? rank : 0);
}

Compensator random_compensator(std::int64_t rows, std::int64_t rank, std::int64_t hidden,
                               std::shared_ptr<const CompensatorInput> a, Bits& bits) {
  Compensator c;
  c.rank = rank;
  c.out_features = rows;
  c.a = std::move(a);
  c.b.resize(static_cast<std::size_t>(rows * rank));
  for (auto& value : c.b) value = static_cast<std::int8_t>(static_cast<int>(bits.next() % 255U) - 127);
  c.b_scales.assign(static_cast<std::size_t>(rank), f32_to_f16(1e-3F));
  fill_gate(c.gate, hidden, rank, bits);
  return c;
}

void add_compensators(ModelWeights& weights, const RandomWeightsOptions& options, Bits& bits) {
  std::int64_t per_rank = 0;  // bytes
  std::map<int, std::shared_ptr<CompensatorInput>> shared;
  const int modules = module_count(weights.config);
  for (int i = 0; i < modules; ++i) {
    const ModuleId id{i};
    per_rank += out_features(weights.config, id.kind()) + 2 + 4 * options.gate_hidden;
    if (id.input_group().index == i) per_rank += in_features(weights.config, id.kind()) + 2;
  }
  const auto base = static_cast<double>(budget_base_bytes(weights, options.scheme));
  const auto rank = static_cast<std::int64_t>(options.compensator_budget * base / static_cast<double>(per_rank));
  if (rank < 1) return;
  for (int i = 0; i < modules; ++i) {
    const ModuleId id{i};
    auto& a = shared[id.input_group().index];
    if (!a) {
      a = std::make_shared<CompensatorInput>();
      a->rows = rank;
      a->cols = in_features(weights.config, id.kind());
      a->values.resize(static_cast<std::size_t>(a->rows * a->cols));
      for (auto& value : a->values) value = static_cast<std::int8_t>(static_cast<int>(bits.next() % 255U) - 127);
      a->scales.assign(static_cast<std::size_t>(rank), f32_to_f16(1e-4F));
    }
    weights.linear(id).compensator =
        random_compensator(out_features(weights.config, id.kind()), rank, options.gate_hidden, a, bits);
  }
}

}  // namespace

ModelConfig shape_config(std::string_view shape, std::int64_t vocabulary) {
  std::string names;
  for (const auto& s : kShapes) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", s.name);
    if (shape != s.name) continue;
    ModelConfig config;
    config.num_hidden_layers = s.layers;
    config.hidden_size = s.hidden;
    config.intermediate_size = s.intermediate;
    config.num_attention_heads = s.heads;
    config.num_key_value_heads = s.kv_heads;
    config.head_dim = s.head_dim;
    config.vocab_size = vocabulary;
    config.max_position_embeddings = 131072;
    config.tie_word_embeddings = true;
    config.validate("--shape");
    return config;
  }
  throw usage_error(fmt::format("unknown shape '{}'", shape), "--shape", "use one of: " + names);
}

ModelWeights random_weights(const ModelConfig& config, const RandomWeightsOptions& options) {
  ModelWeights weights;
  weights.config = config;
  weights.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
  weights.embedding_budget_bytes = int8_matrix_bytes(config.vocab_size, config.hidden_size);
  // Codes are held twice while they are brought into kernel order, and the embedding in bf16 beside 8 bit.
  const double needed = 2.0 * static_cast<double>(budget_base_bytes(weights, options.scheme)) +
                        2.0 * static_cast<double>(config.vocab_size * config.hidden_size);
  if (needed > static_cast<double>(available_memory_bytes())) {
    throw out_of_resources(fmt::format("the model needs {} and {} are free", format_bytes(needed),
                                       format_bytes(static_cast<double>(available_memory_bytes()))),
                           "--shape", "use a smaller shape");
  }
  Bits bits(options.seed);
  weights.embed_tokens = random_bf16(config.vocab_size, config.hidden_size, bits);
  const std::vector<float> ones(static_cast<std::size_t>(config.hidden_size), 1.0F);
  weights.norm = Tensor::from_floats({config.hidden_size}, ones);
  for (auto& layer : weights.layers) layer.input_layernorm = layer.post_attention_layernorm = weights.norm;
  for (int i = 0; i < module_count(config); ++i) {
    const ModuleId id{i};
    weights.linear(id).weight =
        random_w4(out_features(config, id.kind()), in_features(config, id.kind()), options.scheme, bits);
  }
  if (options.compensator_budget > 0) add_compensators(weights, options, bits);
  return weights;
}

}  // namespace spear
