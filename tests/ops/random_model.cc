#include "ops/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

namespace spear::testing {

std::vector<float> random_floats(std::int64_t count, std::uint64_t seed, double scale) {
  Random random(seed);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& value : out) value = static_cast<float>(scale * random.normal());
  return out;
}

W4Matrix random_w4(std::int64_t rows, std::int64_t cols, const W4Scheme& scheme, std::uint64_t seed, double size) {
  Random random(seed, 1);
  W4Matrix shape{rows, cols, scheme, {}, {}, {}};
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols)), zeros;
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows * shape.groups()));
  for (auto& code : codes) code = static_cast<std::uint8_t>(random.below(16));
  for (auto& scale : scales) scale = f32_to_f16(static_cast<float>(size * (0.1 + 0.1 * random.uniform())));
  if (!scheme.symmetric) zeros.resize(scales.size());
  for (auto& zero : zeros) zero = static_cast<std::uint8_t>(random.below(16));
  return pack_w4(rows, cols, scheme, codes, scales, zeros);
}

void shuffle_groups(W4Matrix& matrix, std::uint64_t seed) {
  if (matrix.groups() == 1) return;  // as readers have it
  std::vector<std::int32_t> groups;
  for (std::int64_t col = 0; col < matrix.cols; ++col)
    groups.push_back(static_cast<std::int32_t>(matrix.group_of(col)));
  Random random(seed, 4);
  for (std::size_t i = groups.size(); i > 1; --i) std::swap(groups[i - 1], groups[random.below(i)]);
  matrix.group_index = std::move(groups);
}

BlockMatrix random_blocks(std::int64_t rows, std::int64_t cols, const char* type, std::uint64_t seed, double size) {
  BlockMatrix out{rows, cols, nullptr, {}};
  for (std::uint32_t id = 0; id < 256; ++id) {
    const GgufType* found = find_gguf_type(id);
    if (found != nullptr && std::string_view(found->name) == type) out.type = found;
  }
  Random random(seed, 5);
  out.blocks.resize(static_cast<std::size_t>(out.storage_bytes()));
  for (auto& byte : out.blocks) byte = static_cast<std::byte>(random.below(256));
  // Six-bit scales times four- to six-bit codes: the half is what brings them down to `size`.
  const double half = size / (out.type->block_size == 256 ? 300.0 : 10.0);
  for (std::int64_t at = 0; at < out.storage_bytes(); at += out.type->block_bytes) {
    for (const std::int64_t offset : {out.type->first_half, out.type->second_half}) {
      if (offset < 0) continue;
      const std::uint16_t bits = f32_to_f16(static_cast<float>(half * (random.uniform() - 0.5)));
      std::memcpy(out.blocks.data() + at + offset, &bits, sizeof bits);
    }
  }
  return out;
}

std::shared_ptr<const CompensatorInput> random_input(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  auto a = std::make_shared<CompensatorInput>();
  a->rows = rows;
  a->cols = cols;
  quantize_rows_int8(random_floats(rows * cols, seed, 0.3), rows, cols, a->values, a->scales);
  return a;
}

Compensator random_compensator(std::int64_t rank, std::int64_t gate_rows, std::int64_t hidden, std::int64_t out,
                               std::shared_ptr<const CompensatorInput> a, std::uint64_t seed) {
  Random random(seed, 2);
  Compensator c;
  c.rank = rank;
  c.gate_rows = gate_rows;
  c.out_features = out;
  c.a = std::move(a);
  for (std::int64_t i = 0; i < out * rank; ++i) c.b.push_back(static_cast<std::int8_t>(random.below(255)) - 127);
  for (std::int64_t r = 0; r < rank; ++r)
    c.b_scales.push_back(f32_to_f16(static_cast<float>(0.004 * random.uniform())));
  c.gate.hidden = hidden;
  const auto fill = [&](std::vector<std::uint16_t>& part, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) part.push_back(f32_to_bf16(static_cast<float>(0.5 * random.normal())));
  };
  fill(c.gate.w1, hidden * (rank + gate_rows));
  fill(c.gate.b1, hidden);
  fill(c.gate.w2, hidden * rank);
  fill(c.gate.b2, hidden > 0 ? rank : 0);
  c.validate();
  return c;
}

namespace {

void add_every_option(ModelConfig& config) {
  config.rope_theta = 1e5;
  config.rope_scaling = {RopeScaling::Type::llama3, 8, 1, 4, 32};
  config.rope_local_theta = 500;
  config.sliding_window = 7;
  config.local_layers.assign(static_cast<std::size_t>(config.num_hidden_layers), true);
  config.local_layers.back() = false;
  config.query_pre_attn_scalar = 3;
  config.hidden_act = HiddenAct::gelu_tanh;
  config.embedding_scale = 1.75;
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = config.output_norms = true;
}

}  // namespace

ModelWeights random_model(const RandomModelOptions& o) {
  ModelWeights weights;
  ModelConfig& config = weights.config;
  config.hidden_size = o.hidden;
  config.intermediate_size = o.intermediate;
  config.num_hidden_layers = o.layers;
  config.num_attention_heads = o.heads;
  config.num_key_value_heads = o.kv_heads;
  config.head_dim = o.head_dim;
  config.vocab_size = o.vocabulary;
  config.max_position_embeddings = 128;
  config.tie_word_embeddings = o.tied;
  if (o.every_option) add_every_option(config);
  std::uint64_t seed = o.seed * 1000;
  const auto dense = [&](Shape shape, double scale) {
    return Tensor::from_floats(shape, random_floats(element_count(shape), ++seed, scale)).to(o.dense);
  };
  const auto gain = [&](std::int64_t size) {
    auto values = random_floats(size, ++seed, 0.2);
    for (float& value : values) value += 1.0F;
    return Tensor::from_floats({size}, values);
  };
  weights.embed_tokens = dense({o.vocabulary, o.hidden}, 1.0);
  if (!o.tied) weights.lm_head = dense({o.vocabulary, o.hidden}, 1.0);
  weights.layers.resize(static_cast<std::size_t>(o.layers));
  weights.norm = gain(o.hidden);
  for (const NormId id : norms_of(config)) {
    if (id != NormId::final(config)) weights.gain(id) = gain(norm_size(config, id));
  }
  std::map<int, std::shared_ptr<const CompensatorInput>> shared;
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    const std::int64_t rows = out_features(config, id.kind()), cols = in_features(config, id.kind());
    const double size = 1.0 / std::sqrt(static_cast<double>(cols));
    LinearModule& module = weights.linear(id);
    if (o.packed) {
      module.weight = random_w4(rows, cols, o.scheme, ++seed, size);
    } else {
      module.weight = dense({rows, cols}, size);
    }
    if (has_bias(config, id.kind())) module.bias = Tensor::from_floats({rows}, random_floats(rows, ++seed, 0.3));
    if (!o.compensators || id.kind() == LinearKind::k_proj) continue;
    auto& a = shared[id.input_group().index];
    if (!a) a = random_input(5, cols, ++seed);
    module.compensator = random_compensator(3, 2, index % 2 == 0 ? 4 : 0, rows, a, ++seed);
  }
  weights.embedding_budget_bytes = int8_matrix_bytes(o.vocabulary, o.hidden) * (o.tied ? 1 : 2);
  return weights;
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed) {
  Random random(seed, 3);
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < count; ++i) {
    out.push_back(static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocabulary))));
  }
  return out;
}

}  // namespace spear::testing
