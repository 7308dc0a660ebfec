#include "io/model_reader.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "io_test_util.h"

namespace spear {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// A copy of the tiny Hugging Face model that a test may spoil.
class HuggingFace : public testing::Test {
 protected:
  void SetUp() override {
    fs::copy(data_file("tiny-llama"), directory_.path(), fs::copy_options::recursive);
    config_ = json::parse(read_raw(directory_ / "config.json"));
  }
  ModelWeights read(const json& config) {
    write_raw(directory_ / "config.json", config.dump());
    return read_model(directory_.path());
  }
  /// Sets one option, which must be refused by name.
  void expect_option_refused(const std::string& key, const json& value) {
    json config = config_;
    config[key] = value;
    expect_refused([&] { read(config); }, key);
  }
  void change_tensors(const std::function<void(TensorMap&)>& change) {
    auto file = read_safetensors(data_file("tiny-llama/model.safetensors"));
    change(file.tensors);
    write_safetensors(directory_ / "model.safetensors", file.tensors, {});
  }

  TemporaryDirectory directory_;
  json config_;
};

TEST(ModelReader, GgufEqualsTheHuggingFaceModelItWasMadeFrom) {
  const ModelWeights gguf = read_model(data_file("tiny-llama.gguf"));
  ModelWeights hf = read_model(data_file("tiny-llama"));
  EXPECT_EQ(gguf.embedding_budget_bytes, 40 * 34) << "shipped as Q8_0";
  EXPECT_EQ(hf.embedding_budget_bytes, int8_matrix_bytes(40, 32));
  hf.embedding_budget_bytes = gguf.embedding_budget_bytes;
  expect_same_model(gguf, hf);
  EXPECT_EQ(hf.config.rms_norm_eps, 1e-5);
}

TEST(ModelReader, KindAndConfigWithoutWeights) {
  EXPECT_EQ(kind_of_model(data_file("tiny-llama.gguf")), ModelKind::gguf);
  EXPECT_EQ(kind_of_model(data_file("tiny-llama")), ModelKind::huggingface);
  EXPECT_EQ(read_model_config(data_file("tiny-llama.gguf")).rope_theta, 50000.0);
  EXPECT_EQ(read_model_config(data_file("tiny-llama")).num_key_value_heads, 1);
  EXPECT_EQ(weights_type(data_file("tiny-llama.gguf")), DType::f32);
  EXPECT_EQ(weights_type(data_file("tiny-llama")), DType::f32);
  expect_refused([] { kind_of_model(data_file("no-such-model")); }, "no such file");
  expect_refused([] { kind_of_model(data_file("w4_golden.json")); }, "not a GGUF file");
  expect_refused([] { kind_of_model(data_file("tiny-llama/model.safetensors")); }, "pass the directory");
  const TemporaryDirectory empty;
  expect_refused([&] { kind_of_model(empty.path()); }, "no config.json");
}

TEST(ModelReader, DamagedGgufNeverCrashes) {
  const TemporaryDirectory directory;
  const auto path = directory / "m.gguf";
  const std::string bytes = read_raw(data_file("tiny-llama.gguf"));
  expect_hardened(path, bytes, 61, [&] { read_model(path); });
}

TEST_F(HuggingFace, DamagedConfigNeverCrashes) {
  const auto path = directory_ / "config.json";
  std::string text = config_.dump();
  expect_hardened(path, text, 1, [&] { read_model(directory_.path()); });
}

TEST_F(HuggingFace, OptionsThatChangeResultsAreRefusedByName) {
  EXPECT_NO_THROW(read(config_));
  for (const char* foreign : {"qkv_bias", "use_sliding_window", "use_bidirectional_attention"}) {
    expect_option_refused(foreign, true);
  }
  for (const char* foreign : {"hidden_activation", "query_pre_attn_scalar", "rope_local_base_freq", "embedding_scale"}) {
    expect_option_refused(foreign, 2);
  }
  expect_option_refused("hidden_act", "gelu");
  expect_option_refused("sliding_window", 4096);
  expect_option_refused("partial_rotary_factor", 0.5);
  expect_option_refused("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}});
  expect_option_refused("rope_scaling", {{"type", "linear"}, {"factor", 0.5}});
  expect_option_refused("rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}});
  expect_option_refused("rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}, {"beta_fast", 32}});
  expect_option_refused("rope_parameters", {{"rope_type", "yarn"}});
  expect_option_refused("rope_scaling", "linear");
  expect_option_refused("layer_types", {"full_attention", "sliding_attention"});
  expect_option_refused("final_logit_softcapping", 30.0);
  expect_option_refused("attention_multiplier", 0.1);
  expect_option_refused("residual_multiplier", 0.2);
  expect_option_refused("logits_scaling", 8.0);
  expect_option_refused("embedding_multiplier", 12.0);
  expect_option_refused("use_qk_norm", true);
  expect_option_refused("num_local_experts", 8);
  expect_option_refused("architectures", {"LlamaForSequenceClassification"});
}

TEST_F(HuggingFace, NeutralOptionsAreAccepted) {
  json config = config_;
  config.update({{"attention_bias", false},
                 {"rope_scaling", nullptr},
                 {"sliding_window", nullptr},
                 {"partial_rotary_factor", 1.0},
                 {"layer_types", {"full_attention", "full_attention"}},
                 {"pretraining_tp", 1},
                 {"_name_or_path", "x"},
                 {"attention_dropout", 0.0},
                 {"quantization_config", nullptr}});
  EXPECT_NO_THROW(read(config));
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1234.5}};
  EXPECT_EQ(read(config).config.rope_theta, 1234.5);
}

TEST_F(HuggingFace, OtherArchitecturesAreNamed) {
  for (const char* type : {"gpt2", "gemma3", "mixtral"}) {
    json config = config_;
    config["model_type"] = type;
    expect_refused([&] { read(config); }, fmt::format("architecture \"{}\" is not supported", type));
  }
  config_.erase("model_type");
  expect_refused([&] { read(config_); }, "(none named)");
}

TEST_F(HuggingFace, OtherQuantizationsAreNamed) {
  const auto with = [&](const json& quantization) {
    config_["quantization_config"] = quantization;
    return [this] { read(config_); };
  };
  expect_refused(with({{"quant_method", "bitsandbytes"}, {"bits", 4}}), "quant_method = \"bitsandbytes\"");
  expect_refused(with({{"quant_method", "gptq"}, {"bits", 8}}), "bits = 8");
  expect_refused(with({{"quant_method", "gptq"}, {"bits", 4}, {"sym", true}, {"group_size", 48}}), "group_size = 48");
  expect_refused(with({{"quant_method", "awq"}, {"bits", 4}, {"version", "gemv"}}), "version = \"gemv\"");
  const json good = {
      {"quant_method", "compressed-tensors"},
      {"format", "pack-quantized"},
      {"config_groups",
       {{"group_0",
         {{"targets", {"Linear"}}, {"weights", {{"num_bits", 4}, {"type", "int"}, {"strategy", "channel"}}}}}}}};
  EXPECT_NO_THROW(with(good)()) << "a quantized config may leave every linear dense";
  const auto spoiled = [&](const char* pointer, const json& value) {
    json bad = good;
    bad[json::json_pointer(pointer)] = value;
    return with(bad);
  };
  expect_refused(spoiled("/format", "int-quantized"), "int-quantized");
  expect_refused(spoiled("/kv_cache_scheme", {{"num_bits", 8}}), "kv_cache_scheme");
  expect_refused(spoiled("/transform_config", {{"x", 1}}), "transform_config");
  expect_refused(spoiled("/sparsity_config", {{"format", "sparse-24"}}), "sparsity_config");
  expect_refused(spoiled("/config_groups", json::object()), "config_groups");
  expect_refused(spoiled("/config_groups/group_1", json::object()), "config_groups");
  expect_refused(spoiled("/config_groups/group_0/targets", {"re:.*q_proj"}), "targets");
  expect_refused(spoiled("/config_groups/group_0/input_activations", {{"num_bits", 8}}), "input_activations");
  expect_refused(spoiled("/config_groups/group_0/weights/num_bits", 8), "num_bits = 8");
  expect_refused(spoiled("/config_groups/group_0/weights/type", "float"), "type");
  expect_refused(spoiled("/config_groups/group_0/weights/strategy", "tensor"), "strategy");
  expect_refused(spoiled("/config_groups/group_0/weights/strategy", "group"), "group_size = null");
  expect_refused(spoiled("/config_groups/group_0/weights/group_size", 128), "group_size");
  expect_refused(spoiled("/config_groups/group_0/weights/dynamic", true), "dynamic");
  expect_refused(spoiled("/config_groups/group_0/weights", "w4"), "num_bits");
  expect_refused(with("gptq"), "quant_method");
}

TEST_F(HuggingFace, ConfigValuesThatMakeNoSense) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    json config = config_;
    config.erase(key);
    expect_refused([&] { read(config); }, key);
    for (const json& value :
         {json(0), json(-1), json(1.5), json("7"), json(INT64_MAX), json(UINT64_MAX), json::array()}) {
      config[key] = value;
      expect_refused([&] { read(config); }, "");
    }
  }
  expect_option_refused("num_key_value_heads", 3);
  expect_option_refused("head_dim", 15);
  expect_option_refused("rms_norm_eps", -1);
  expect_option_refused("rope_theta", 0);
  expect_option_refused("tie_word_embeddings", "yes");
  expect_option_refused("eos_token_id", "2");
}

TEST_F(HuggingFace, EosTokensOfTheGenerationConfigAreAdded) {
  write_raw(directory_ / "generation_config.json", R"({"eos_token_id":[7,1]})");
  EXPECT_EQ(read(config_).config.eos_token_ids, (std::vector<std::int64_t>{1, 7}));
  EXPECT_EQ(read_model_config(directory_.path()).eos_token_ids, (std::vector<std::int64_t>{1, 7}));
}

TEST_F(HuggingFace, TheTypeOfWeightsIsWhatTheConfigSays) {
  const auto type_with = [&](const char* key, const char* value) {
    json config = config_;
    for (const char* each : {"dtype", "torch_dtype"}) config.erase(each);
    if (key != nullptr) config[key] = value;
    read(config);
    return weights_type(directory_.path());
  };
  EXPECT_EQ(type_with("torch_dtype", "float32"), DType::f32);
  EXPECT_EQ(type_with("dtype", "float32"), DType::f32);
  EXPECT_EQ(type_with("torch_dtype", "float16"), DType::bf16);
  EXPECT_EQ(type_with(nullptr, nullptr), DType::bf16);
}

TEST_F(HuggingFace, TensorsMissingMisshapenOrUnknown) {
  const std::string q = "model.layers.1.self_attn.q_proj.";
  const auto refused = [&](const std::function<void(TensorMap&)>& change, const std::string& text) {
    change_tensors(change);
    expect_refused([&] { read_model(directory_.path()); }, text);
  };
  refused([&](TensorMap& t) { t.erase(q + "weight"); }, q + "weight");
  refused([&](TensorMap& t) { t[q + "weight"] = Tensor(DType::f32, {32, 31}); }, "[32, 31] instead of [32, 32]");
  refused([&](TensorMap& t) { t[q + "weight"] = Tensor(DType::i8, {32, 32}); }, "dtype I8");
  refused([&](TensorMap& t) { t[q + "bias"] = Tensor(DType::f32, {32}); }, q + "bias");
  refused([&](TensorMap& t) { t["model.norm.weight"] = Tensor(DType::f32, {31}); }, "model.norm.weight");
  refused([&](TensorMap& t) { t["model.layers.2.input_layernorm.weight"] = Tensor(DType::f32, {32}); },
          "model.layers.2");
  change_tensors([](TensorMap& t) {
    t["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor(DType::f32, {8});
    t["lm_head.weight"] = Tensor(DType::f32, {40, 32});
  });
  EXPECT_NO_THROW(read_model(directory_.path())) << "what old tools leave behind is harmless";
}

TEST_F(HuggingFace, NaNAndInfinityAreRefusedInEveryDtype) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    for (const float value : {std::nanf(""), INFINITY, -INFINITY}) {
      change_tensors([&](TensorMap& t) {
        Tensor& weight = t["model.layers.0.mlp.up_proj.weight"];
        auto values = weight.to_floats();
        values[77] = value;
        weight = Tensor::from_floats(weight.shape(), values).to(type);
      });
      expect_refused([&] { read_model(directory_.path()); }, "element 77 is NaN or infinite");
    }
  }
}

TEST_F(HuggingFace, HalfPrecisionAndUntiedHeads) {
  const auto original = read_model(data_file("tiny-llama"));
  for (const DType type : {DType::f16, DType::bf16}) {
    change_tensors([&](TensorMap& t) {
      t["lm_head.weight"] = t["model.embed_tokens.weight"];
      for (auto& [name, tensor] : t) tensor = tensor.to(type);
    });
    json config = config_;
    config["tie_word_embeddings"] = false;
    const auto weights = read(config);
    EXPECT_EQ(weights.embed_tokens.dtype(), type);
    EXPECT_EQ(weights.lm_head.to_floats(), original.embed_tokens.to(type).to_floats());
    EXPECT_EQ(weights.embedding_budget_bytes, 2 * int8_matrix_bytes(40, 32));
  }
  json config = config_;
  config["tie_word_embeddings"] = false;
  change_tensors([](TensorMap&) {});
  expect_refused([&] { read(config); }, "lm_head.weight");
}

TEST_F(HuggingFace, ShardedEqualsSingle) {
  auto file = read_safetensors(data_file("tiny-llama/model.safetensors"));
  fs::remove(directory_ / "model.safetensors");
  TensorMap shards[2];
  json index = {{"weight_map", json::object()}};
  int next = 0;
  for (auto& [name, tensor] : file.tensors) {
    const int shard = next++ % 2;
    shards[shard][name] = tensor;
    index["weight_map"][name] = fmt::format("model-0000{}-of-00002.safetensors", shard + 1);
  }
  for (int i = 0; i < 2; ++i)
    write_safetensors(directory_ / fmt::format("model-0000{}-of-00002.safetensors", i + 1), shards[i], {});
  write_raw(directory_ / "model.safetensors.index.json", index.dump());
  expect_same_model(read_model(directory_.path()), read_model(data_file("tiny-llama")));
}

}  // namespace
}  // namespace spear
