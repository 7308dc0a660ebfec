#include "io/checkpoint.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "io/model_reader.h"
#include "io/packed_linear.h"
#include "io_test_util.h"

namespace spear {
namespace {

using nlohmann::json;

const std::string kModule = "model.layers.0.self_attn.q_proj";

class Checkpoint : public testing::Test {
 protected:
  ModelWeights write(const TinyOptions& options, std::int64_t gate_hidden = -1) {
    ModelWeights weights = tiny_model(options);
    if (gate_hidden >= 0) add_compensators(weights, gate_hidden);
    write_checkpoint(path_, weights, {}, json::object());
    return weights;
  }
  void change(const std::string& file, const std::function<void(Safetensors&)>& edit) {
    Safetensors content = read_safetensors(path_ / file);
    edit(content);
    write_safetensors(path_ / file, content.tensors, content.metadata);
  }
  void expect_change_refused(const std::string& file, const std::function<void(Safetensors&)>& edit,
                             const std::string& text) {
    const std::string before = read_raw(path_ / file);
    change(file, edit);
    expect_refused([&] { read_checkpoint(path_); }, text);
    write_raw(path_ / file, before);
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_.path();
};

TEST_F(Checkpoint, RoundTripOfEveryScheme) {
  for (const W4Scheme scheme :
       {W4Scheme{0, true}, W4Scheme{0, false}, W4Scheme{32, true}, W4Scheme{32, false}, W4Scheme{128, true}}) {
    for (const bool tied : {true, false}) {
      const ModelWeights weights = write({tied, scheme});
      EXPECT_EQ(kind_of_model(path_), ModelKind::checkpoint);
      expect_same_model(read_model(path_), weights);
      EXPECT_NO_THROW(verify_checkpoint(path_));
    }
  }
}

TEST_F(Checkpoint, RoundTripWithCompensators) {
  for (const std::int64_t hidden : {0, 3}) {
    const ModelWeights weights = write({true, W4Scheme{}}, hidden);
    const ModelWeights back = read_checkpoint(path_);
    expect_same_model(back, weights);
    const auto input = [&](LinearKind kind) { return back.linear(ModuleId::of(0, kind)).compensator->a; };
    EXPECT_EQ(input(LinearKind::q_proj), input(LinearKind::k_proj));
    EXPECT_EQ(input(LinearKind::q_proj), input(LinearKind::v_proj));
    const auto file = read_safetensors(path_ / "compensators.safetensors");
    EXPECT_EQ(file.metadata.at("format_version"), "1");
    EXPECT_EQ(file.metadata.at("gate"), hidden == 0 ? "none" : "mlp");
    EXPECT_TRUE(file.tensors.contains(kModule + ".compensator.A"));
    EXPECT_FALSE(file.tensors.contains("model.layers.0.self_attn.k_proj.compensator.A"));
  }
}

TEST_F(Checkpoint, SharedInputIsHeldByTheGroupsOwnerEvenWithoutItsCompensator) {
  ModelWeights weights = tiny_model({true, W4Scheme{}});
  add_compensators(weights, 2);
  weights.linear({0}).compensator.reset();
  write_checkpoint(path_, weights, {}, json::object());
  expect_same_model(read_checkpoint(path_), weights);
  EXPECT_TRUE(read_safetensors(path_ / "compensators.safetensors").tensors.contains(kModule + ".compensator.A"));
}

TEST_F(Checkpoint, OwnerWithAnotherInputKeepsItsOwn) {
  ModelWeights weights = tiny_model({true, W4Scheme{}});
  add_compensators(weights, 2);
  auto& q = *weights.linear({0}).compensator;
  q.a = std::make_shared<CompensatorInput>(*q.a);
  write_checkpoint(path_, weights, {}, json::object());
  const ModelWeights back = read_checkpoint(path_);
  expect_same_model(back, weights);
  EXPECT_NE(back.linear({0}).compensator->a, back.linear({1}).compensator->a);
  EXPECT_EQ(back.linear({1}).compensator->a, back.linear({2}).compensator->a);
}

TEST_F(Checkpoint, SharingAcrossInputsIsAMistakeOfTheCaller) {
  ModelWeights weights = tiny_model({true, W4Scheme{}});
  add_compensators(weights, 0);
  weights.linear(ModuleId::of(1, LinearKind::gate_proj)).compensator->a = weights.linear({0}).compensator->a;
  weights.linear(ModuleId::of(1, LinearKind::gate_proj)).compensator = weights.linear({0}).compensator;
  weights.linear(ModuleId::of(1, LinearKind::gate_proj)).compensator->out_features = 40;
  weights.linear(ModuleId::of(1, LinearKind::gate_proj)).compensator->b.resize(40 * 4);
  EXPECT_THROW(write_checkpoint(path_, weights, {}, json::object()), Error);
}

TEST_F(Checkpoint, EqualInputGivesEqualBytes) {
  write({true, W4Scheme{32, false}}, 3);
  std::map<std::string, std::string> first;
  for (const auto& entry : std::filesystem::directory_iterator(path_))
    first[entry.path().filename()] = read_raw(entry.path());
  write({true, W4Scheme{32, false}}, 3);
  for (const auto& [name, bytes] : first) EXPECT_EQ(read_raw(path_ / name), bytes) << name;
  EXPECT_EQ(first.size(), 4U);
}

TEST_F(Checkpoint, DtypesOnDisk) {
  ModelWeights weights = tiny_model({true, W4Scheme{}});
  weights.norm.mutable_as<float>()[3] = 1.0F + 0x1p-20F;
  write_checkpoint(path_, weights, {}, json::object());
  auto tensors = read_safetensors(path_ / "model.safetensors").tensors;
  EXPECT_EQ(tensors.at("model.embed_tokens.weight").dtype(), DType::f16);
  EXPECT_EQ(tensors.at("model.norm.weight").dtype(), DType::f32) << "not exact in F16";
  EXPECT_EQ(tensors.at("model.layers.0.input_layernorm.weight").dtype(), DType::f16);
  EXPECT_EQ(json::parse(read_raw(path_ / "config.json"))["torch_dtype"], "float16");
  weights.embed_tokens.mutable_as<float>()[5] = 1e5F;
  write_checkpoint(path_, weights, {}, json::object());
  tensors = read_safetensors(path_ / "model.safetensors").tensors;
  EXPECT_EQ(tensors.at("model.embed_tokens.weight").dtype(), DType::bf16) << "beyond F16's range";
  EXPECT_EQ(json::parse(read_raw(path_ / "config.json"))["torch_dtype"], "bfloat16");
}

TEST_F(Checkpoint, DenseModelsAndDenseExceptionsStayAsTheyAre) {
  const ModelWeights dense = write({false, std::nullopt});
  EXPECT_FALSE(json::parse(read_raw(path_ / "config.json")).contains("quantization_config"));
  const ModelWeights back = read_checkpoint(path_);
  expect_same_model(back, dense);
  EXPECT_EQ(back.embed_tokens.dtype(), DType::f32);

  ModelWeights mixed = tiny_model({true, W4Scheme{}});
  mixed.linear({4}).weight = tiny_model().linear({4}).weight;
  write_checkpoint(path_, mixed, {}, json::object());
  expect_same_model(read_checkpoint(path_), mixed);
  const auto quantization = json::parse(read_raw(path_ / "config.json"))["quantization_config"];
  EXPECT_EQ(quantization["ignore"], json::array({"lm_head", "model.layers.0.mlp.gate_proj"}));
}

TEST_F(Checkpoint, MixedSchemesAreAMistakeOfTheCaller) {
  ModelWeights weights = tiny_model({true, W4Scheme{}});
  weights.linear({3}).weight = tiny_model({true, W4Scheme{32, true}}).linear({3}).weight;
  EXPECT_THROW(write_checkpoint(path_, weights, {}, json::object()), Error);
}

TEST_F(Checkpoint, TextsAndManifest) {
  const ModelWeights weights = tiny_model({true, W4Scheme{}});
  write_checkpoint(path_, weights, {"{\"a\":1}", "", "{\"eos_token_id\":9}"}, {{"seed", 7}});
  EXPECT_EQ(read_raw(path_ / "tokenizer.json"), "{\"a\":1}");
  EXPECT_FALSE(std::filesystem::exists(path_ / "tokenizer_config.json"));
  EXPECT_EQ(read_checkpoint(path_).config.eos_token_ids, (std::vector<std::int64_t>{2, 5, 9}));
  const json manifest = read_manifest(path_);
  EXPECT_EQ(manifest["seed"], 7);
  EXPECT_EQ(manifest["schema"], kManifestSchema);
  EXPECT_EQ(manifest["files"].size(), 4U);
  EXPECT_EQ(manifest["files"]["tokenizer.json"], "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862");
}

TEST_F(Checkpoint, WhatAnInterruptedWriteLeavesCannotBeRead) {
  ModelWeights weights = tiny_model({true, W4Scheme{}});
  add_compensators(weights, 2);
  const CheckpointFiles files{"{}", "{}", "{}"};
  int interrupted = 0;
  // A folder in a file's place ends the writing there; without the folder the rest is what a killed process leaves.
  for (const char* last : {"model.safetensors", "compensators.safetensors", "tokenizer.json", "tokenizer_config.json",
                           "generation_config.json", "spear.json", "config.json"}) {
    const auto folder = directory_ / fmt::format("stopped-at-{}", last);
    std::filesystem::create_directories(folder / last / "in the way");
    EXPECT_THROW(write_checkpoint(folder, weights, files, json::object()), Error) << last;
    std::filesystem::remove_all(folder / last);
    EXPECT_THROW(read_model(folder), Error) << last;
    EXPECT_THROW(kind_of_model(folder), Error) << last;
    ++interrupted;
  }
  EXPECT_EQ(interrupted, 7);
}

TEST_F(Checkpoint, VerifyNamesWhatChanged) {
  write({true, W4Scheme{}}, 2);
  std::string bytes = read_raw(path_ / "compensators.safetensors");
  bytes.back() = static_cast<char>(bytes.back() + 1);
  write_raw(path_ / "compensators.safetensors", bytes);
  expect_refused([&] { verify_checkpoint(path_); }, "compensators.safetensors: SHA-256");
  std::filesystem::remove(path_ / "compensators.safetensors");
  expect_refused([&] { verify_checkpoint(path_); }, "cannot open");
  expect_refused([&] { read_checkpoint(path_); }, "spear.json lists it");
}

TEST_F(Checkpoint, HostileManifests) {
  write({true, W4Scheme{}});
  const auto refused = [&](const std::string& text, const std::string& reason) {
    write_raw(path_ / "spear.json", text);
    expect_refused([&] { verify_checkpoint(path_); }, reason);
  };
  refused("{}", "schema (none)");
  refused(R"({"schema":"spear.manifest/2"})", "spear.manifest/2");
  refused("[]", "not a JSON object");
  refused("{", "JSON");
  refused(R"({"schema":"spear.manifest/1","files":["x"]})", "files");
  refused(R"({"schema":"spear.manifest/1","files":"x"})", "files");
  refused(R"({"schema":"spear.manifest/1","files":{"a":1}})", "files");
  refused(R"({"schema":"spear.manifest/1","files":{"../../etc/passwd":"0"}})", "not the name of a file");
  refused(R"({"schema":"spear.manifest/1","files":{"":"0"}})", "not the name of a file");
  write_raw(path_ / "spear.json", R"({"schema":"spear.manifest/1","embedding_budget_bytes":-5})");
  EXPECT_EQ(read_checkpoint(path_).embedding_budget_bytes, int8_matrix_bytes(30, 24));
  write_raw(path_ / "spear.json", R"({"schema":"spear.manifest/1","embedding_budget_bytes":5})");
  EXPECT_EQ(read_checkpoint(path_).embedding_budget_bytes, 5);
}

TEST_F(Checkpoint, HostilePackedLinears) {
  write({true, W4Scheme{32, false}});
  const auto refused = [&](const std::string& part, const Tensor& tensor, const std::string& text) {
    expect_change_refused(
        "model.safetensors", [&](Safetensors& file) { file.tensors[kModule + part] = tensor; }, text);
  };
  refused(".weight_packed", Tensor(DType::i32, {24, 4}), "[24, 4] instead of [24, 3]");
  refused(".weight_packed", Tensor(DType::i64, {24, 3}), "dtype I64");
  refused(".weight_scale", Tensor(DType::f16, {24, 2}), "[24, 2] instead of [24, 1]");
  refused(".weight_zero_point", Tensor(DType::i32, {24, 1}), "[24, 1] instead of [3, 1]");
  refused(".weight_shape", Tensor(DType::i64, {2}), "[0, 0] instead of [24, 24]");
  refused(".weight_shape", Tensor(DType::i64, {3}), "[3] instead of [2]");
  refused(".weight_g_idx", Tensor(DType::i32, {23}), "[23] instead of [24]");
  Tensor groups(DType::i32, {24});
  groups.mutable_as<std::int32_t>()[5] = 1;
  refused(".weight_g_idx", groups, "input 5 belongs to group 1");
  refused(".weight", Tensor(DType::f32, {24, 24}), "q_proj.weight'");
  Tensor infinite(DType::f16, {24, 1});
  infinite.mutable_as<std::uint16_t>()[4] = 0x7c00;
  refused(".weight_scale", infinite, "a scale is NaN or infinite");
  refused(".weight_scale", Tensor::from_floats({24, 1}, std::vector<float>(24, 1.0F + 0x1p-15F)), "not representable");
  expect_change_refused(
      "model.safetensors", [](Safetensors& file) { file.tensors.erase(kModule + ".weight_zero_point"); },
      "weight_zero_point' is missing");
}

TEST_F(Checkpoint, ForeignDtypesOfScalesAndShape) {
  write({true, W4Scheme{}});
  change("model.safetensors", [](Safetensors& file) {
    file.tensors[kModule + ".weight_scale"] =
        Tensor::from_floats({24, 1}, std::vector<float>(24, 0.375F)).to(DType::bf16);
    Tensor shape(DType::i32, {2});
    for (auto& dim : shape.mutable_as<std::int32_t>()) dim = 24;
    file.tensors[kModule + ".weight_shape"] = shape;
  });
  const ModelWeights weights = read_checkpoint(path_);
  EXPECT_EQ(std::get<W4Matrix>(weights.linear({0}).weight).scale(7, 0), 0.375F);
}

TEST_F(Checkpoint, HostileCompensators) {
  write({true, W4Scheme{}}, 3);
  const std::string name = "compensators.safetensors";
  const auto metadata = [&](const std::string& key, const std::string& value, const std::string& text) {
    expect_change_refused(
        name, [&](Safetensors& file) { file.metadata[key] = value; }, text);
  };
  metadata("format_version", "2", "version '2' is unknown");
  metadata("format_version", "", "version '' is unknown");
  metadata("gate", "moe", "gate kind 'moe' is unknown");
  metadata("gate", "none", "a gate in a file of gate kind 'none'");
  metadata("modules", "{", "not a JSON object");
  metadata("modules", "{}", "belongs to no compensator");
  metadata("modules", R"({"model.layers.9.mlp.up_proj":{"rank":1,"gate_rows":0}})", "no module 'model.layers.9");
  for (const char* key : {"format_version", "gate", "modules"}) {
    expect_change_refused(
        name, [&](Safetensors& file) { file.metadata.erase(key); }, "is missing");
  }
  const auto entry = [&](const std::string& key, const json& value, const std::string& text) {
    expect_change_refused(
        name,
        [&](Safetensors& file) {
          json modules = json::parse(file.metadata.at("modules"));
          modules[kModule][key] = value;
          file.metadata["modules"] = modules.dump();
        },
        text);
  };
  entry("rank", 0, "'rank'");
  entry("rank", -1, "'rank'");
  entry("rank", "4", "'rank'");
  entry("rank", UINT64_MAX, "'rank'");
  entry("rank", 1 << 30, "'rank'");
  entry("rank", 5, "A has 5 rows");
  entry("gate_rows", -1, "'gate_rows'");
  entry("a", "model.layers.0.mlp.up_proj", "no module that reads the same input");
  entry("a", 3, "no module that reads the same input");
  entry("a", "model.layers.0.self_attn.v_proj", "is missing");
  const auto tensor = [&](const std::string& part, const Tensor& value, const std::string& text) {
    expect_change_refused(
        name, [&](Safetensors& file) { file.tensors[kModule + ".compensator." + part] = value; }, text);
  };
  tensor("A", Tensor(DType::i8, {5, 23}), "[5, 23] instead of [5, 24]");
  tensor("A", Tensor(DType::f32, {5, 24}), "dtype F32");
  tensor("B", Tensor(DType::i8, {24, 5}), "[24, 5] instead of [24, 4]");
  tensor("gate.W1", Tensor(DType::bf16, {3, 4}), "[3, 4] instead of [3, 5]");
  tensor("gate.b1", Tensor(DType::bf16, {0}), "shape [0]");
  tensor("gate.b1", Tensor(DType::bf16, {}), "shape []");
  tensor("gate.W3", Tensor(DType::bf16, {1}), "belongs to no compensator");
  Tensor nan(DType::f16, {4});
  nan.mutable_as<std::uint16_t>()[1] = 0x7e00;
  tensor("B_scale", nan, "not finite");
}

TEST_F(Checkpoint, DamagedAnywhereNeverCrashes) {
  write({true, W4Scheme{32, false}}, 2);
  for (const char* name : {"model.safetensors", "compensators.safetensors"}) {
    expect_hardened(path_ / name, read_raw(path_ / name), 47, [&] { read_checkpoint(path_); });
  }
  expect_hardened(path_ / "config.json", json::parse(read_raw(path_ / "config.json")).dump(), 3,
                  [&] { read_checkpoint(path_); });
}

// Oracle: numpy (tests/golden/make_w4_golden.py), packing as compressed-tensors does.
TEST(PackedLinear, MatchesNumpy) {
  const json golden = json::parse(read_raw(data_file("w4_golden.json")));
  ASSERT_EQ(golden["cases"].size(), 6U);
  for (const json& item : golden["cases"]) {
    const std::int64_t rows = item["rows"], cols = item["cols"];
    const W4Scheme scheme{item["group_size"], item["symmetric"]};
    const W4Matrix matrix =
        pack_w4(rows, cols, scheme, item["codes"].get<std::vector<std::uint8_t>>(),
                item["scales"].get<std::vector<std::uint16_t>>(), item["zeros"].get<std::vector<std::uint8_t>>());
    EXPECT_EQ(matrix.dequantize(), item["values"].get<std::vector<float>>());
    TensorMap tensors;
    put_packed_linear(tensors, "m", matrix, false);
    const auto expected = item["weight_packed"].get<std::vector<std::uint32_t>>();
    const auto words = tensors.at("m.weight_packed").as<std::uint32_t>();
    ASSERT_EQ(words.size(), expected.size());
    for (std::size_t i = 0; i < words.size(); ++i) {
      const std::int64_t used =
          std::min<std::int64_t>(8, cols - static_cast<std::int64_t>(i) % matrix.words_per_row() * 8);
      const std::uint32_t mask = used == 8 ? 0xffffffffU : (1U << (4 * used)) - 1;  // padding nibbles are free
      EXPECT_EQ(words[i] & mask, expected[i] & mask) << i;
    }
    if (!scheme.symmetric) {
      EXPECT_EQ(to_vector<std::uint32_t>(tensors.at("m.weight_zero_point")),
                item["weight_zero_point"].get<std::vector<std::uint32_t>>());
    }
    const W4Matrix back = take_packed_linear(tensors, "m", rows, cols, scheme, "test");
    EXPECT_TRUE(tensors.empty());
    EXPECT_EQ(back.packed, matrix.packed);
    EXPECT_EQ(back.scales, matrix.scales);
    EXPECT_EQ(back.zeros, matrix.zeros);
  }
}

}  // namespace
}  // namespace spear
