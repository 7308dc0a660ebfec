// Every model family against logits of Hugging Face transformers, read from both of its file formats.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/checkpoint.h"
#include "ops/cpu_model.h"
#include "ops/golden.h"

namespace spear {
namespace {

using testing::Golden;
using testing::golden_tolerance;
using testing::kFamilyGoldens;
using testing::logits_of;
using testing::read_golden;
using testing::reference_logits;
using testing::relative_error;

void expect_agreement(const Golden& golden, const std::string& name) {
  const double allowed = golden_tolerance(golden.weights.config);
  CpuModel cpu(golden.weights);
  EXPECT_LT(relative_error(logits_of(cpu, golden), golden.logits), allowed) << name << ", online plane";
  EXPECT_LT(relative_error(reference_logits(golden.weights, golden), golden.logits), allowed) << name << ", reference";
}

TEST(FamilyGoldenTest, HuggingFaceDirectories) {
  for (const std::string name : kFamilyGoldens) expect_agreement(read_golden("family-golden/" + name), name);
}

TEST(FamilyGoldenTest, GgufFiles) {
  for (const std::string name : {"llama-gguf", "mistral-plain", "qwen2", "qwen3", "gemma3-gguf"}) {
    expect_agreement(read_golden("family-golden/" + name, "model.gguf"), name + " GGUF");
  }
}

/// What is written is the same model: both as the family's own files and as a checkpoint that other tools read.
TEST(FamilyGoldenTest, WrittenAndReadAgain) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "family_checkpoint";
  for (const std::string name : kFamilyGoldens) {
    for (const char* model : {"", "model.gguf"}) {
      if (!std::filesystem::exists(std::filesystem::path(SPEAR_TEST_DATA) / "family-golden" / name / model)) continue;
      Golden golden = read_golden("family-golden/" + name, model);
      golden.weights = with_stored_embeddings(golden.weights);
      std::filesystem::remove_all(folder);
      std::filesystem::create_directories(folder);
      write_checkpoint(folder, golden.weights, {}, nlohmann::json::object());
      const ModelWeights again = read_checkpoint(folder);
      EXPECT_EQ(reference_logits(again, golden), reference_logits(golden.weights, golden)) << name << " " << model;
    }
  }
  std::filesystem::remove_all(folder);
}

TEST(FamilyGoldenTest, PlantedFaultsAreSeen) {
  const auto error_with = [](const Golden& golden, auto&& change) {
    ModelWeights weights = golden.weights;
    change(weights);
    return relative_error(reference_logits(weights, golden), golden.logits);
  };
  for (const std::string name : kFamilyGoldens) {
    const Golden golden = read_golden("family-golden/" + name);
    const ModelConfig& c = golden.weights.config;
    const auto config_error = [&](auto&& change) {
      return error_with(golden, [&](ModelWeights& w) { change(w.config); });
    };
    EXPECT_GT(config_error([](ModelConfig& m) { m.rope_theta *= 1.5; }), 1e-4) << name;
    if (c.rope_scaling.type != RopeScaling::Type::none) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.rope_scaling = {}; }), name == "llama-gguf" ? 1e-6 : 1e-3) << name;
    }
    if (c.rope_local_theta > 0) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.rope_local_theta = 0; }), 1e-3) << name;
    }
    if (c.sliding_window > 0) {
      EXPECT_GT(config_error([](ModelConfig& m) { ++m.sliding_window; }), 1e-3) << name;
      EXPECT_GT(config_error([](ModelConfig& m) { m.local_layers.flip(); }), 1e-3) << name;
    }
    if (c.qk_norm) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.qk_norm = false; }), 1e-3) << name;
    }
    if (c.output_norms) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.output_norms = false; }), 1e-3) << name;
    }
    if (c.embedding_scale != 1) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.embedding_scale = 1; }), 1e-3) << name;
    }
    if (c.query_pre_attn_scalar > 0 && c.query_pre_attn_scalar != static_cast<double>(c.head_dim)) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.query_pre_attn_scalar = 0; }), 1e-3) << name;
    }
    if (c.hidden_act == HiddenAct::gelu_tanh) {
      EXPECT_GT(config_error([](ModelConfig& m) { m.hidden_act = HiddenAct::silu; }), 1e-3) << name;
    }
    for (int i = 0; i < kLinearsPerLayer; ++i) {
      if (!has_bias(c, static_cast<LinearKind>(i)) || static_cast<LinearKind>(i) == LinearKind::k_proj) continue;
      EXPECT_GT(error_with(golden, [&](ModelWeights& w) {
                  auto& bias = w.linear({i}).bias;
                  bias = Tensor(DType::f32, bias.shape());
                }), 1e-3) << name << " " << ModuleId{i}.name();
    }
  }
}

}  // namespace
}  // namespace spear
