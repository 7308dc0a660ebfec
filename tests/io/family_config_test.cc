// config.json and GGUF metadata of the model families: defaults, refusals, damage. Results: ops/family_golden_test.cc.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "io/hf_config.h"
#include "io/model_reader.h"
#include "io_test_util.h"

namespace spear {
namespace {

using nlohmann::json;

/// The smallest config.json of a family: everything that has a default is left out.
json config_of(const char* type) {
  return {{"model_type", type},         {"hidden_size", 1152}, {"intermediate_size", 64}, {"num_hidden_layers", 30},
          {"num_attention_heads", 32}, {"vocab_size", 100}};
}

ModelConfig parse(const json& config) { return parse_hf_config(config, "config.json").model; }

void expect_option_refused(const char* type, const char* option, const json& value) {
  json config = config_of(type);
  config[option] = value;
  expect_refused([&] { parse(config); }, option);
}

TEST(FamilyConfig, DefaultsOfTransformers) {
  const ModelConfig llama = parse(config_of("llama"));
  EXPECT_EQ(std::tuple(llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings, llama.rope_theta),
            std::tuple(32, 36, 2048, 1e4));
  EXPECT_FALSE(llama.tie_word_embeddings || llama.qkv_bias || llama.o_bias || llama.mlp_bias || llama.qk_norm);
  EXPECT_TRUE(llama.local_layers.empty());

  const ModelConfig mistral = parse(config_of("mistral"));
  EXPECT_EQ(std::tuple(mistral.num_key_value_heads, mistral.window(0), mistral.window(29)), std::tuple(8, 4096, 4096));
  json plain = config_of("mistral");
  plain["sliding_window"] = nullptr;
  EXPECT_EQ(parse(plain).window(0), 0) << "null is not the default";

  const ModelConfig qwen2 = parse(config_of("qwen2"));
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
  EXPECT_EQ(qwen2.window(29), 0);
  json windows = config_of("qwen2");
  windows["use_sliding_window"] = true;
  EXPECT_EQ(std::tuple(parse(windows).window(27), parse(windows).window(28)), std::tuple(0, 4096));
  windows["max_window_layers"] = 30;
  EXPECT_EQ(parse(windows).window(29), 0);

  const ModelConfig qwen3 = parse(config_of("qwen3"));
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.qkv_bias);

  const ModelConfig gemma = parse(config_of("gemma3_text"));
  EXPECT_TRUE(gemma.qk_norm && gemma.output_norms && gemma.tie_word_embeddings);
  EXPECT_EQ(std::tuple(gemma.num_key_value_heads, gemma.head_dim, gemma.rope_theta, gemma.rope_local_theta),
            std::tuple(4, 256, 1e6, 1e4));
  EXPECT_EQ(gemma.hidden_act, HiddenAct::gelu_tanh);
  EXPECT_EQ(std::tuple(gemma.window(0), gemma.window(4), gemma.window(5), gemma.window(11)), std::tuple(4096, 4096, 0, 0));
  EXPECT_EQ(gemma.query_pre_attn_scalar, 256);
}

TEST(FamilyConfig, EmbeddingScaleIsRoundedToTheModelsType) {
  json config = config_of("gemma3_text");
  EXPECT_EQ(parse(config).embedding_scale, std::sqrt(1152.0F));  // 33.94113
  config["torch_dtype"] = "bfloat16";
  EXPECT_EQ(parse(config).embedding_scale, 34.0);
  config["dtype"] = "float16";  // the newer name
  EXPECT_EQ(parse(config).embedding_scale, 33.9375);
  config["embedding_scale"] = 33.5;
  EXPECT_EQ(parse(config).embedding_scale, 33.5);
}

TEST(FamilyConfig, OptionsOfOtherFamiliesAreRefusedByName) {
  for (const char* type : {"mistral", "qwen2"}) expect_option_refused(type, "attention_bias", true);
  for (const char* type : {"mistral", "qwen2", "qwen3", "gemma3_text"}) expect_option_refused(type, "mlp_bias", true);
  expect_option_refused("mistral", "use_sliding_window", true);
  expect_option_refused("mistral", "layer_types", json::array({"full_attention"}));
  expect_option_refused("qwen3", "layer_types", json::array({"full_attention"}));
  expect_option_refused("qwen3", "layer_types", json(std::vector<std::string>(30, "chunked_attention")));
  expect_option_refused("qwen3", "layer_types", json(std::vector<std::string>(30, "sliding_attention")));
  expect_option_refused("qwen3", "query_pre_attn_scalar", 128);
  expect_option_refused("gemma3_text", "final_logit_softcapping", 30.0);
  expect_option_refused("gemma3_text", "attn_logit_softcapping", 50.0);
  expect_option_refused("gemma3_text", "use_bidirectional_attention", true);
  expect_option_refused("gemma3_text", "hidden_activation", "gelu");
  expect_option_refused("gemma3_text", "hidden_act", "silu");
  expect_option_refused("gemma3_text", "sliding_window_pattern", 0);
  expect_option_refused("gemma3_text", "query_pre_attn_scalar", 0);
  expect_option_refused("gemma3_text", "rope_local_base_freq", 0.5);
  expect_option_refused("gemma3_text", "rope_parameters", {{"rope_theta", 1e4}});
  expect_option_refused("gemma3_text", "rope_parameters", {{"sliding_attention", {{"type", "linear"}, {"factor", 2}}}});
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}) {
    for (const char* scaling : {"yarn", "dynamic", "longrope", "su"}) {
      expect_option_refused(type, "rope_scaling", {{"rope_type", scaling}, {"factor", 4.0}});
    }
    expect_option_refused(type, "rope_scaling", {{"rope_type", "linear"}});
  }
  for (const char* type : {"llama", "mistral", "gemma3_text"}) expect_option_refused(type, "sliding_window", -3);
}

TEST(FamilyConfig, WrittenConfigsReadAgain) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"}) {
    json config = config_of(type);
    config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
    if (config["model_type"] != "llama") config["sliding_window"] = 77;
    if (config["model_type"] == "qwen2") config.update({{"use_sliding_window", true}, {"max_window_layers", 3}});
    const json once = make_hf_config(parse(config), DType::bf16);
    EXPECT_EQ(make_hf_config(parse(once), DType::bf16), once) << type;
    EXPECT_EQ(parse(once).local_layers, parse(config).local_layers) << type;
    EXPECT_EQ(parse(once).rope_scaling, parse(config).rope_scaling) << type;
  }
}

TEST(FamilyConfig, ARotatedStreamIsNothingThatOtherReadersKnow) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    ModelConfig model = parse(config_of(type));
    const json plain = make_hf_config(model, DType::bf16);
    model.rotated_stream = true;
    json written = make_hf_config(model, DType::bf16);
    EXPECT_NE(written["model_type"], plain["model_type"]);
    EXPECT_NE(written["architectures"], plain["architectures"]);
    EXPECT_TRUE(parse(written).rotated_stream);
    EXPECT_EQ(parse(written).model_type, model.model_type);
    EXPECT_EQ(make_hf_config(parse(written), DType::bf16), written);
    EXPECT_FALSE(parse(plain).rotated_stream);
    json unknown = written;
    unknown["spear_stream_rotation"] = "dct-hadamard/2";
    EXPECT_THROW(parse(unknown), Error);
    written.erase("spear_stream_rotation");
    EXPECT_THROW(parse(written), Error) << "a rotated model that does not say how";
  }
  json hostile = config_of("llama");
  hostile.update({{"spear_stream_rotation", "dct-hadamard/1"}, {"hidden_size", 1048575}, {"head_dim", 64}});
  EXPECT_THROW(parse(hostile), Error) << "tables of a terabyte";
  json gemma = config_of("gemma3_text");
  gemma["spear_stream_rotation"] = "dct-hadamard/1";
  EXPECT_THROW(parse(gemma), Error);
}

TEST(FamilyConfig, DamagedGgufNeverCrashes) {
  const TemporaryDirectory directory;
  for (const char* name : {"gemma3-gguf", "llama-gguf", "qwen3"}) {
    const std::string bytes = read_raw(data_file(fmt::format("family-golden/{}/model.gguf", name)));
    const auto path = directory / "m.gguf";
    expect_hardened(path, bytes, 509, [&] { read_model(path); });
  }
}

}  // namespace
}  // namespace spear
