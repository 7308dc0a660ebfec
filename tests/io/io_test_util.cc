#include "io_test_util.h"

#include <fstream>
#include <sstream>

namespace spear {
namespace {

Tensor random_tensor(Random& random, Shape shape) {
  Tensor tensor(DType::f32, std::move(shape));
  // Multiples of 1/256 are exact in F16, so that storing them loses nothing.
  for (float& v : tensor.mutable_as<float>())
    v = static_cast<float>(static_cast<int>(random.below(513)) - 256) / 256.0F;
  return tensor;
}

std::shared_ptr<const CompensatorInput> random_input(Random& random, std::int64_t rows, std::int64_t cols) {
  auto a = std::make_shared<CompensatorInput>();
  a->rows = rows;
  a->cols = cols;
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (auto& v : values) v = static_cast<float>(random.normal());
  quantize_rows_int8(values, rows, cols, a->values, a->scales);
  return a;
}

Compensator random_compensator(Random& random, std::shared_ptr<const CompensatorInput> a, std::int64_t gate_rows,
                               std::int64_t out, std::int64_t hidden) {
  Compensator result;
  result.rank = a->rows - gate_rows;
  result.gate_rows = gate_rows;
  result.out_features = out;
  result.b.resize(static_cast<std::size_t>(out * result.rank));
  for (auto& v : result.b) v = static_cast<std::int8_t>(static_cast<int>(random.below(255)) - 127);
  const auto fill = [&](std::int64_t count, std::uint16_t (*encode)(float)) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
    for (auto& v : values) v = encode(static_cast<float>(random.normal()));
    return values;
  };
  result.b_scales = fill(result.rank, f32_to_f16);
  result.gate = {hidden, fill(hidden * a->rows, f32_to_bf16), fill(hidden, f32_to_bf16),
                 fill(result.rank * hidden, f32_to_bf16), fill(hidden > 0 ? result.rank : 0, f32_to_bf16)};
  result.a = std::move(a);
  return result;
}

void expect_same_tensor(const Tensor& a, const Tensor& b, const std::string& name) {
  ASSERT_EQ(a.shape(), b.shape()) << name;
  ASSERT_EQ(a.to_floats(), b.to_floats()) << name;
}

void expect_same_linear(const LinearModule& a, const LinearModule& b, const std::string& name) {
  ASSERT_EQ(a.weight.index(), b.weight.index()) << name;
  if (const auto* packed = std::get_if<W4Matrix>(&a.weight)) {
    const auto& other = std::get<W4Matrix>(b.weight);
    EXPECT_EQ(packed->scheme, other.scheme) << name;
    EXPECT_EQ(packed->packed, other.packed) << name;
    EXPECT_EQ(packed->scales, other.scales) << name;
    EXPECT_EQ(packed->zeros, other.zeros) << name;
    EXPECT_EQ(packed->group_index, other.group_index) << name;
    EXPECT_EQ(packed->dequantize(), other.dequantize()) << name;
  } else if (const auto* blocks = std::get_if<BlockMatrix>(&a.weight)) {
    EXPECT_EQ(blocks->type, std::get<BlockMatrix>(b.weight).type) << name;
    EXPECT_EQ(blocks->blocks, std::get<BlockMatrix>(b.weight).blocks) << name;
  } else {
    expect_same_tensor(std::get<Tensor>(a.weight), std::get<Tensor>(b.weight), name);
  }
  ASSERT_EQ(a.compensator.has_value(), b.compensator.has_value()) << name;
  if (!a.compensator) return;
  const Compensator &x = *a.compensator, &y = *b.compensator;
  EXPECT_EQ(std::tie(x.rank, x.gate_rows, x.out_features, x.b, x.b_scales),
            std::tie(y.rank, y.gate_rows, y.out_features, y.b, y.b_scales));
  EXPECT_EQ(std::tie(x.a->rows, x.a->cols, x.a->values, x.a->scales),
            std::tie(y.a->rows, y.a->cols, y.a->values, y.a->scales));
  EXPECT_EQ(std::tie(x.gate.hidden, x.gate.w1, x.gate.b1, x.gate.w2, x.gate.b2),
            std::tie(y.gate.hidden, y.gate.w1, y.gate.b1, y.gate.w2, y.gate.b2));
}

}  // namespace

void write_raw(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::remove(path);  // truncating an existing file makes some file systems flush it
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string read_raw(const std::filesystem::path& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

void expect_refused(const std::function<void()>& body, const std::string& text) {
  try {
    body();
    ADD_FAILURE() << "accepted; expected a refusal with '" << text << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr(text));
    EXPECT_FALSE(error.where().empty()) << error.what();
  }
}

bool survives(const std::function<void()>& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input) << error.what();
    return false;
  }
}

void expect_hardened(const std::filesystem::path& path, const std::string& bytes, std::size_t stride,
                     const std::function<void()>& read) {
  write_raw(path, bytes);
  ASSERT_TRUE(survives(read)) << "the undamaged file must be readable";
  for (std::size_t length = 0; length < bytes.size(); length += stride) {
    write_raw(path, std::string_view(bytes).substr(0, length));
    ASSERT_FALSE(survives(read)) << "a prefix of " << length << " bytes was accepted";
  }
  for (std::size_t i = 0; i < bytes.size(); i += stride) {
    for (const int variant : {0, 0xff, bytes[i] ^ 0xff, bytes[i] + 1}) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(variant);
      write_raw(path, damaged);
      survives(read);
    }
  }
  write_raw(path, bytes);
}

W4Matrix random_w4(Random& random, std::int64_t rows, std::int64_t cols, const W4Scheme& scheme,
                   const std::function<double()>& scale, unsigned least_zero) {
  const W4Matrix shape{rows, cols, scheme, {}, {}, {}};
  const auto count = static_cast<std::size_t>(rows * shape.groups());
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols)), zeros(scheme.symmetric ? 0 : count);
  std::vector<std::uint16_t> scales(count);
  for (auto& v : codes) v = static_cast<std::uint8_t>(random.below(16));
  for (auto& v : zeros) v = static_cast<std::uint8_t>(least_zero + random.below(16 - least_zero));
  for (auto& v : scales) v = f32_to_f16(static_cast<float>(scale()));
  return pack_w4(rows, cols, scheme, codes, scales, zeros);
}

ModelWeights tiny_model(const TinyOptions& options) {
  Random random(17);
  ModelWeights weights;
  ModelConfig& config = weights.config;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 3;
  config.num_key_value_heads = 1;
  config.head_dim = 8;
  config.vocab_size = 30;
  config.max_position_embeddings = 64;
  config.rope_theta = 25000.0;
  config.tie_word_embeddings = options.tied;
  config.bos_token_id = 1;
  config.eos_token_ids = {2, 5};
  weights.embed_tokens = random_tensor(random, {30, 24});
  if (!options.tied) weights.lm_head = random_tensor(random, {30, 24});
  weights.norm = random_tensor(random, {24});
  weights.embedding_budget_bytes = (options.tied ? 1 : 2) * int8_matrix_bytes(30, 24);
  weights.layers.resize(2);
  for (auto& layer : weights.layers) {
    layer.input_layernorm = random_tensor(random, {24});
    layer.post_attention_layernorm = random_tensor(random, {24});
  }
  for (int index = 0; index < module_count(config); ++index) {
    const LinearKind kind = ModuleId{index}.kind();
    const std::int64_t rows = out_features(config, kind), cols = in_features(config, kind);
    auto& weight = weights.linear({index}).weight;
    if (options.scheme) {
      weight = random_w4(random, rows, cols, *options.scheme, [&] { return 0.01 + 0.1 * random.uniform(); });
    } else {
      weight = random_tensor(random, {rows, cols});
    }
  }
  return weights;
}

void add_compensators(ModelWeights& weights, std::int64_t hidden) {
  Random random(23);
  const auto shared = random_input(random, 5, weights.config.hidden_size);
  const auto add = [&](std::int64_t layer, LinearKind kind, std::shared_ptr<const CompensatorInput> a,
                       std::int64_t gate_rows, std::int64_t gate_hidden) {
    weights.linear(ModuleId::of(layer, kind)).compensator =
        random_compensator(random, std::move(a), gate_rows, out_features(weights.config, kind), gate_hidden);
  };
  add(0, LinearKind::q_proj, shared, 1, hidden);
  add(0, LinearKind::k_proj, shared, 1, hidden);
  add(0, LinearKind::v_proj, shared, 2, 0);
  add(0, LinearKind::down_proj, random_input(random, 2, weights.config.intermediate_size), 0, hidden);
  add(1, LinearKind::gate_proj, random_input(random, 3, weights.config.hidden_size), 0, hidden);
  add(1, LinearKind::up_proj, random_input(random, 4, weights.config.hidden_size), 2, hidden);
}

void expect_same_model(const ModelWeights& a, const ModelWeights& b) {
  const ModelConfig &x = a.config, &y = b.config;
  EXPECT_EQ(std::tie(x.hidden_size, x.intermediate_size, x.num_hidden_layers, x.num_attention_heads,
                     x.num_key_value_heads, x.head_dim, x.vocab_size, x.max_position_embeddings, x.rope_theta,
                     x.tie_word_embeddings, x.bos_token_id, x.eos_token_ids),
            std::tie(y.hidden_size, y.intermediate_size, y.num_hidden_layers, y.num_attention_heads,
                     y.num_key_value_heads, y.head_dim, y.vocab_size, y.max_position_embeddings, y.rope_theta,
                     y.tie_word_embeddings, y.bos_token_id, y.eos_token_ids));
  EXPECT_FLOAT_EQ(static_cast<float>(x.rms_norm_eps), static_cast<float>(y.rms_norm_eps));
  expect_same_tensor(a.embed_tokens, b.embed_tokens, "embed_tokens");
  ASSERT_EQ(a.lm_head.empty(), b.lm_head.empty());
  if (!a.lm_head.empty()) expect_same_tensor(a.lm_head, b.lm_head, "lm_head");
  expect_same_tensor(a.norm, b.norm, "norm");
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    expect_same_tensor(a.layers[i].input_layernorm, b.layers[i].input_layernorm, "input_layernorm");
    expect_same_tensor(a.layers[i].post_attention_layernorm, b.layers[i].post_attention_layernorm,
                       "post_attention_layernorm");
  }
  for (int index = 0; index < module_count(a.config); ++index) {
    expect_same_linear(a.linear({index}), b.linear({index}), ModuleId{index}.name());
  }
  EXPECT_EQ(compensator_bytes(a), compensator_bytes(b)) << "sharing differs";
  EXPECT_EQ(a.embedding_budget_bytes, b.embedding_budget_bytes);
}

}  // namespace spear
