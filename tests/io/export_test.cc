// Other programs' files by our writers, through our readers. tests/python/check_export.py reads them with other tools.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/temporary_directory.h"
#include "io/checkpoint.h"
#include "io/gguf.h"
#include "io/gguf_blocks.h"
#include "io/gguf_model.h"
#include "io/gguf_model_writer.h"
#include "io/gptq_writer.h"
#include "io/model_reader.h"
#include "io/safetensors.h"
#include "io_test_util.h"

namespace spear {
namespace {

/// Values that F16 holds.
Tensor random_tensor(Random& random, Shape shape) {
  Tensor tensor(DType::f16, std::move(shape));
  for (auto& v : tensor.mutable_as<std::uint16_t>()) v = f32_to_f16(static_cast<float>(random.normal()));
  return tensor;
}

struct ExportOptions {
  W4Scheme scheme;
  std::string family = "llama";
  unsigned least_zero = 0;
  std::int64_t intermediate = 96;
};

/// Two layers; two heads of 32 that share one key head, so that q and k are permuted differently.
ModelWeights export_model(const ExportOptions& options) {
  Random random(5);
  ModelWeights weights;
  ModelConfig& c = weights.config;
  c.model_type = options.family;
  c.hidden_size = 64;
  c.intermediate_size = options.intermediate;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.num_key_value_heads = 1;
  c.head_dim = 32;
  c.vocab_size = 40;
  c.max_position_embeddings = 128;
  c.tie_word_embeddings = true;
  c.bos_token_id = 0;
  c.eos_token_ids = {1};
  c.qkv_bias = options.family == "qwen2";
  weights.embedding_budget_bytes = int8_matrix_bytes(40, 64);
  weights.layers.resize(2);
  weights.embed_tokens = random_tensor(random, {40, 64});
  for (const NormId id : norms_of(c)) weights.gain(id) = random_tensor(random, {norm_size(c, id)});
  for (int index = 0; index < module_count(c); ++index) {
    const ModuleId id{index};
    const std::int64_t rows = out_features(c, id.kind());
    // Negative scales too: a Q4_0 file may bring them.
    weights.linear(id).weight = random_w4(random, rows, in_features(c, id.kind()), options.scheme,
                                          [&] { return 0.05 * random.normal(); }, options.least_zero);
    if (has_bias(c, id.kind())) weights.linear(id).bias = random_tensor(random, {rows});
  }
  return weights;
}

GgufTokenizer tokenizer_of_40() {
  GgufTokenizer tokenizer;
  tokenizer.model = "gpt2";
  tokenizer.pre = "smollm";
  for (int i = 0; i < 40; ++i) tokenizer.tokens.push_back("t" + std::to_string(i));
  tokenizer.token_types.assign(40, 1);
  tokenizer.token_types[0] = tokenizer.token_types[1] = 3;
  tokenizer.merges = {"t t1", "t t2"};
  tokenizer.bos_id = 0;
  tokenizer.eos_id = 1;
  tokenizer.add_bos = false;
  tokenizer.chat_template = "{{ messages }}";
  return tokenizer;
}

void expect_usage_error(const std::function<void()>& body, const std::string& text) {
  try {
    body();
    ADD_FAILURE() << "accepted; expected a refusal with '" << text << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr(text));
  }
}

class Export : public testing::TestWithParam<const char*> {
 protected:
  TemporaryDirectory directory_;
};

TEST_P(Export, GptqIsReadBackBitForBit) {
  const ModelWeights weights = export_model({parse_scheme(GetParam())});
  EXPECT_EQ(write_gptq_model(directory_.path(), weights).checkpoint_format,
            !parse_scheme(GetParam()).symmetric ? "gptq_v2" : "gptq");
  expect_same_model(weights, read_checkpoint(directory_.path()));
}

TEST_P(Export, GgufIsReadBackToTheSameValues) {
  const ModelWeights weights = export_model({parse_scheme(GetParam())});
  const auto path = directory_ / "model.gguf";
  write_gguf_model(path, weights, tokenizer_of_40(), {"tiny", false});
  const GgufFile file(path);
  EXPECT_STREQ(file.tensor("blk.1.ffn_down.weight").type->name, parse_scheme(GetParam()).symmetric ? "Q4_0" : "Q5_0");
  const ModelWeights read = read_gguf_weights(file);
  for (int index = 0; index < module_count(weights.config); ++index) {
    EXPECT_EQ(std::get<W4Matrix>(weights.linear({index}).weight).dequantize(),
              std::get<Tensor>(read.linear({index}).weight).to_floats());
  }
  EXPECT_EQ(weights.embed_tokens.to_floats(), read.embed_tokens.to_floats());
  for (const NormId id : norms_of(weights.config)) EXPECT_EQ(weights.gain(id).to_floats(), read.gain(id).to_floats());
}

TEST_P(Export, Q4_0StaysPackedInABackbone) {
  if (!parse_scheme(GetParam()).symmetric) return;
  const ModelWeights weights = export_model({parse_scheme(GetParam())});
  const auto path = directory_ / "model.gguf";
  write_gguf_model(path, weights, tokenizer_of_40(), {"tiny", false});
  const ModelWeights read = read_backbone(path);
  bool negative = false;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const auto& matrix = std::get<W4Matrix>(read.linear({index}).weight);
    EXPECT_EQ(matrix.scheme, (W4Scheme{32, true}));
    EXPECT_EQ(matrix.packed, std::get<W4Matrix>(weights.linear({index}).weight).packed);
    EXPECT_EQ(matrix.dequantize(), std::get<W4Matrix>(weights.linear({index}).weight).dequantize());
    for (const auto bits : matrix.scales) negative |= (bits & 0x8000U) != 0;
  }
  EXPECT_TRUE(negative);
  EXPECT_TRUE(std::holds_alternative<Tensor>(read_model(path).linear({0}).weight));
}

/// Blocks of one of the types of 32 that llama.cpp mixes, with finite scales.
BlockMatrix random_blocks(Random& random, std::int64_t rows, std::int64_t cols, std::uint32_t type) {
  BlockMatrix matrix{rows, cols, find_gguf_type(type), {}};
  matrix.blocks.resize(static_cast<std::size_t>(matrix.storage_bytes()));
  for (auto& byte : matrix.blocks) byte = static_cast<std::byte>(random.below(256));
  for (std::int64_t at = 0; at < matrix.storage_bytes(); at += matrix.type->block_bytes) {
    for (const std::int64_t offset : {matrix.type->first_half, matrix.type->second_half}) {
      const std::uint16_t bits = f32_to_f16(static_cast<float>(0.05 * random.normal()));
      if (offset >= 0) std::memcpy(matrix.blocks.data() + at + offset, &bits, sizeof bits);
    }
  }
  return matrix;
}

/// Q4_0 and five other types, and one dense linear.
ModelWeights mixed_model(const std::string& family) {
  ModelWeights weights = export_model({{32, true}, family});
  Random random(9);
  const std::uint32_t types[] = {3, kGgufQ5_0, 7, kGgufQ8_0};
  for (int index = 1; index < module_count(weights.config); ++index) {
    LinearWeight& weight = weights.linear({index}).weight;
    const Shape shape = shape_of(weight);
    if (index % 5 != 0) weight = random_blocks(random, shape[0], shape[1], types[index % 5 - 1]);
  }
  weights.linear({13}).weight = Tensor::from_floats(shape_of(weights.linear({13}).weight), dequantize(weights.linear({13}).weight));
  return weights;
}

TEST(MixedGguf, LinearsStayAsTheFileHasThem) {
  for (const char* family : {"llama", "qwen2"}) {  // q and k rows in another order, and not
    const TemporaryDirectory directory;
    const ModelWeights weights = mixed_model(family);
    write_gguf_model(directory / "model.gguf", weights, tokenizer_of_40(), {"tiny", false});
    const ModelWeights kept = read_backbone(directory / "model.gguf"), dense = read_model(directory / "model.gguf");
    for (int index = 0; index < module_count(weights.config); ++index) {
      const auto &expected = weights.linear({index}).weight, &found = kept.linear({index}).weight;
      ASSERT_EQ(found.index(), expected.index()) << index;
      EXPECT_EQ(dequantize(found), dequantize(expected)) << index;
      EXPECT_EQ(std::get<Tensor>(dense.linear({index}).weight).to_floats(), dequantize(expected)) << index;
      if (const auto* blocks = std::get_if<BlockMatrix>(&found)) {
        EXPECT_EQ(blocks->blocks, std::get<BlockMatrix>(expected).blocks) << index;
      }
    }
  }
}

TEST(MixedGguf, IsTheBackboneOfACheckpoint) {
  const TemporaryDirectory directory;
  const auto gguf = directory / "given.gguf";
  write_gguf_model(gguf, mixed_model("llama"), tokenizer_of_40(), {"tiny", false});
  ModelWeights weights = read_backbone(gguf);
  auto a = std::make_shared<CompensatorInput>();
  a->rows = 2;
  a->cols = 64;
  a->values.assign(128, 3);
  a->scales.assign(2, f32_to_f16(0.01F));
  Compensator compensator;
  compensator.rank = 2;
  compensator.out_features = 64;
  compensator.a = a;
  compensator.b.assign(128, 5);
  compensator.b_scales.assign(2, f32_to_f16(0.02F));
  weights.linear({0}).compensator = compensator;
  const auto out = directory / "checkpoint";
  std::filesystem::create_directories(out);
  EXPECT_THROW(write_gguf_checkpoint(out, gguf, std::string(64, '0'), weights, {}), Error);
  EXPECT_FALSE(gguf_of_checkpoint(out)) << "half written";
  std::filesystem::remove_all(out);
  std::filesystem::create_directories(out);
  write_gguf_checkpoint(out, gguf, sha256_file(gguf), weights, {});
  EXPECT_NO_THROW(verify_checkpoint(out));
  EXPECT_EQ(read_raw(out / "model.gguf"), read_raw(gguf));
  EXPECT_EQ(kind_of_model(out), ModelKind::checkpoint);
  EXPECT_EQ(gguf_of_model(out), out / "model.gguf");
  const ModelWeights read = read_model(out);
  expect_same_model(weights, read);
  EXPECT_EQ(read.embedding_budget_bytes, weights.embedding_budget_bytes);
  EXPECT_EQ(read_model_config(out).hidden_size, 64);
  std::int64_t linears = 0;
  for (int index = 0; index < module_count(read.config); ++index) {
    const auto* blocks = std::get_if<BlockMatrix>(&read.linear({index}).weight);
    if (blocks != nullptr) linears += static_cast<std::int64_t>(blocks->blocks.size());
  }
  EXPECT_GT(linears, 0);
  EXPECT_GE(budget_base_bytes(read, {}), linears + read.embedding_budget_bytes);
  // A config.json beside it means another kind of directory.
  write_raw(out / "config.json", "{}");
  EXPECT_FALSE(gguf_of_checkpoint(out));
}

INSTANTIATE_TEST_SUITE_P(Schemes, Export,
                         testing::Values("w4-channel-sym", "w4-channel-asym", "w4-g32-sym", "w4-g32-asym"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class ExportFile : public testing::Test {
 protected:
  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "model.gguf";
};

TEST_F(ExportFile, GptqFirstFormatHoldsZeroPointsAboveZero) {
  const ModelWeights weights = export_model({{32, false}, "llama", 1});
  EXPECT_EQ(write_gptq_model(directory_.path(), weights).checkpoint_format, "gptq");
  expect_same_model(weights, read_checkpoint(directory_.path()));
  // The smallest nibble that the file holds is z - 1 = 0; the model has such a zero point.
  const auto& zeros = std::get<W4Matrix>(weights.linear({0}).weight).zeros;
  EXPECT_NE(std::find(zeros.begin(), zeros.end(), 1), zeros.end());
}

TEST_F(ExportFile, GptqWordsOfASymmetricModel) {
  write_gptq_model(directory_.path(), export_model({{0, true}}));
  auto tensors = read_safetensors(directory_ / "model.safetensors").tensors;
  const Tensor& zeros = tensors.at("model.layers.0.self_attn.q_proj.qzeros");
  EXPECT_EQ(zeros.shape(), (Shape{1, 8}));
  for (const auto word : zeros.as<std::uint32_t>()) EXPECT_EQ(word, 0x77777777U);
}

TEST_F(ExportFile, GptqRefusesWhatItCannotHold) {
  ModelWeights weights = export_model({{0, true}});
  weights.linear({3}).weight = weights.embed_tokens;
  expect_usage_error([&] { write_gptq_model(directory_.path(), weights); }, ModuleId{3}.name());
  ModelWeights rotated = export_model({{0, true}});
  rotated.config.rotated_stream = true;
  expect_usage_error([&] { write_gptq_model(directory_.path(), rotated); }, "rotated");
  expect_usage_error([&] { write_gptq_model(directory_.path(), export_model({{0, true}, "llama", 0, 92})); }, "of 8");
}

TEST_F(ExportFile, GgufRefusesActOrder) {
  ModelWeights weights = export_model({{32, true}});
  auto& matrix = std::get<W4Matrix>(weights.linear({5}).weight);
  for (std::int64_t col = 0; col < matrix.cols; ++col) matrix.group_index.push_back(static_cast<std::int32_t>((matrix.cols - 1 - col) / 32));
  expect_usage_error([&] { write_gguf_model(path_, weights, tokenizer_of_40(), {"tiny", false}); }, "act-order");
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(ExportFile, GgufKeepsBiasesAndPermutesThemWhereLlamaCppDoes) {
  for (const char* family : {"qwen2", "mistral"}) {
    const ModelWeights weights = export_model({{0, true}, family});
    write_gguf_model(path_, weights, tokenizer_of_40(), {"tiny", false});
    const GgufFile file(path_);
    const ModelWeights read = read_gguf_weights(file);
    const ModuleId q{0};
    EXPECT_EQ(std::get<W4Matrix>(weights.linear(q).weight).dequantize(),
              std::get<Tensor>(read.linear(q).weight).to_floats());
    if (!weights.linear(q).bias.empty()) {
      EXPECT_EQ(weights.linear(q).bias.to_floats(), read.linear(q).bias.to_floats());
    }
    EXPECT_EQ(file.text("general.architecture"), weights.config.model_type == "qwen2" ? "qwen2" : "llama");
  }
}

TEST_F(ExportFile, GgufKeepsTheTokenizer) {
  const ModelWeights weights = export_model({{0, true}});
  const GgufTokenizer expected = tokenizer_of_40();
  write_gguf_model(path_, weights, expected, {"tiny", true});
  const auto copy = directory_ / "copy.gguf";
  const GgufFile first(path_);
  write_gguf_model(copy, weights, &first, {"tiny", true});
  for (const auto& path : {path_, copy}) {
    const GgufTokenizer found = read_gguf_tokenizer(GgufFile(path));
    EXPECT_EQ(std::tie(found.model, found.pre, found.tokens, found.token_types, found.merges, found.bos_id, found.eos_id,
                       found.add_bos, found.chat_template),
              std::tie(expected.model, expected.pre, expected.tokens, expected.token_types, expected.merges,
                       expected.bos_id, expected.eos_id, expected.add_bos, expected.chat_template));
    EXPECT_FALSE(found.unknown_id.has_value());
  }
  GgufTokenizer other = expected;
  other.tokens.pop_back();
  expect_usage_error([&] { write_gguf_model(path_, weights, other, {}); }, "39 tokens");
}

TEST_F(ExportFile, GgufEmbeddingInInt8IsWithinHalfAStep) {
  const ModelWeights weights = export_model({{0, true}});
  write_gguf_model(path_, weights, tokenizer_of_40(), {"tiny", true});
  const auto found = GgufFile(path_).dequantize("token_embd.weight").to_floats();
  const auto expected = weights.embed_tokens.to_floats();
  for (std::size_t block = 0; block < expected.size(); block += 32) {
    float largest = 0;
    for (std::size_t i = block; i < block + 32; ++i) largest = std::max(largest, std::abs(expected[i]));
    for (std::size_t i = block; i < block + 32; ++i) {
      // Half a step, and what rounding the step to F16 can move the largest code.
      EXPECT_LE(std::abs(found[i] - expected[i]), largest / 127 / 2 * 1.001F + largest * 0x1p-11F) << i;
    }
  }
}

TEST_F(ExportFile, GgufRefusesWhatLlamaCppWouldIgnore) {
  const auto refused = [&](const std::function<void(ModelWeights&)>& change, const std::string& text) {
    ModelWeights weights = export_model({{0, true}, "mistral"});
    change(weights);
    expect_usage_error([&] { write_gguf_model(path_, weights, tokenizer_of_40(), {}); }, text);
    EXPECT_FALSE(std::filesystem::exists(path_));
  };
  refused([](ModelWeights& w) { w.config.local_layers = {true, true}, w.config.sliding_window = 8; }, "sliding_window");
  refused([](ModelWeights& w) { w.config.hidden_act = HiddenAct::gelu_tanh; }, "hidden_act");
  refused([](ModelWeights& w) { w.config.query_pre_attn_scalar = 8; }, "query_pre_attn_scalar");
  refused([](ModelWeights& w) { w.config.rotated_stream = true; }, "rotated");
  refused([](ModelWeights& w) { w = export_model({{0, true}, "llama", 0, 88}); }, "blocks of 32");
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));  // nothing unchecked is left behind
}

TEST_F(ExportFile, GgufKeepsLlama3sRotaryScaling) {
  ModelWeights weights = export_model({{0, true}});
  RopeScaling& scaling = weights.config.rope_scaling;
  scaling = {RopeScaling::Type::llama3, 8, 1, 4, 8192};
  weights.config.rope_theta = 500000;
  write_gguf_model(path_, weights, tokenizer_of_40(), {});
  const auto found = read_gguf_config(GgufFile(path_)).rope_frequencies(false);
  const auto expected = weights.config.rope_frequencies(false);
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6 * expected[i]);
  scaling.original_max_position_embeddings = 4096;  // the file has factors only
  expect_usage_error([&] { write_gguf_model(directory_ / "other.gguf", weights, tokenizer_of_40(), {}); }, "scaling from 8192 tokens");
}

}  // namespace
}  // namespace spear
