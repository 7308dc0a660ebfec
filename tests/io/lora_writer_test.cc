// Compensators as adapters: W + B A must do what the compensators do.
#include "io/lora_writer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "base/random.h"
#include "io/gguf.h"
#include "io/gguf_names.h"
#include "io/safetensors.h"
#include "io_test_util.h"

namespace spear {
namespace {

/// B A x of factors [rank, in] and [out, rank].
std::vector<double> apply(std::span<const float> a, std::span<const float> b, std::int64_t rank,
                          const std::vector<float>& x) {
  std::vector<double> z(static_cast<std::size_t>(rank)), y(b.size() / z.size());
  for (std::size_t r = 0; r < z.size(); ++r) {
    for (std::size_t i = 0; i < x.size(); ++i) z[r] += static_cast<double>(a[r * x.size() + i]) * x[i];
  }
  for (std::size_t row = 0; row < y.size(); ++row) {
    for (std::size_t r = 0; r < z.size(); ++r) y[row] += static_cast<double>(b[row * z.size() + r]) * z[r];
  }
  return y;
}

std::vector<float> random_input(std::int64_t size) {
  Random random(9);
  std::vector<float> x(static_cast<std::size_t>(size));
  for (float& v : x) v = static_cast<float>(random.normal());
  return x;
}

std::vector<double> correction(const Compensator& compensator, const std::vector<float>& x) {
  std::vector<float> z(static_cast<std::size_t>(compensator.a->rows)), y(static_cast<std::size_t>(compensator.out_features));
  project(*compensator.a, x, z);
  add_correction(compensator, z, y);
  return {y.begin(), y.end()};
}

void expect_near(const std::vector<double>& found, const std::vector<double>& expected, const std::string& where) {
  ASSERT_EQ(found.size(), expected.size()) << where;
  double norm = 0, error = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    norm += expected[i] * expected[i];
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
  }
  EXPECT_GT(norm, 0) << where;
  EXPECT_LE(std::sqrt(error), 1e-6 * std::sqrt(norm)) << where;
}

class LoraWriter : public testing::Test {
 protected:
  LoraWriter() { add_compensators(weights_, 0); }
  TemporaryDirectory directory_;
  ModelWeights weights_ = tiny_model({.scheme = W4Scheme{}});
};

TEST_F(LoraWriter, PeftAdapterIsTheCompensators) {
  const auto factors = lora_factors(weights_, {});
  write_peft_adapter(directory_.path(), weights_.config, factors, "base");
  const auto config = nlohmann::json::parse(read_text_file(directory_ / "adapter_config.json"));
  const std::int64_t rank = config.at("r");
  EXPECT_EQ(config.at("lora_alpha"), rank);
  const auto tensors = read_safetensors(directory_ / "adapter_model.safetensors").tensors;
  std::set<std::string> used;
  for (int index = 0; index < module_count(weights_.config); ++index) {
    const ModuleId id{index};
    const std::string name = "base_model.model." + id.name();
    const auto& compensator = weights_.linear(id).compensator;
    const std::string kind = id.name().substr(id.name().rfind('.') + 1);
    const auto& targets = config.at("target_modules");
    const bool targeted = std::find(targets.begin(), targets.end(), kind) != targets.end();
    ASSERT_EQ(tensors.contains(name + ".lora_A.weight"), targeted);
    if (!targeted) {
      EXPECT_FALSE(compensator.has_value());
      continue;
    }
    const Tensor& a = tensors.at(name + ".lora_A.weight");
    const Tensor& b = tensors.at(name + ".lora_B.weight");
    EXPECT_EQ(a.shape(), (Shape{rank, in_features(weights_.config, id.kind())}));
    EXPECT_EQ(b.shape(), (Shape{out_features(weights_.config, id.kind()), rank}));
    const auto x = random_input(a.dim(1));
    const auto found = apply(a.as<float>(), b.as<float>(), rank, x);
    if (compensator) {
      expect_near(found, correction(*compensator, x), id.name());
    } else {
      EXPECT_EQ(found, std::vector<double>(found.size(), 0.0)) << id.name();
    }
  }
}

TEST_F(LoraWriter, GgufAdapterHasPermutedRows) {
  const auto factors = lora_factors(weights_, {});
  write_gguf_adapter(directory_ / "lora.gguf", weights_.config, factors, "tiny");
  const GgufFile file(directory_ / "lora.gguf");
  EXPECT_EQ(file.text("general.type"), "adapter");
  EXPECT_EQ(file.text("adapter.type"), "lora");
  EXPECT_EQ(file.real("adapter.lora.alpha"), static_cast<double>(factors.front().rank));
  EXPECT_EQ(file.tensors().size(), 2 * factors.size());
  bool permuted = false;
  for (const auto& f : factors) {
    const Tensor a = file.dequantize(gguf_linear_name(f.id) + ".weight.lora_a");
    const Tensor b = file.dequantize(gguf_linear_name(f.id) + ".weight.lora_b");
    const auto x = random_input(f.in_features);
    auto found = apply(a.as<float>(), b.as<float>(), f.rank, x);
    if (f.id.kind() == LinearKind::q_proj || f.id.kind() == LinearKind::k_proj) {
      // llama.cpp's converter: reshape(heads, 2, head_dim / 2) with the last two axes swapped.
      const auto stored = found;
      const auto head = static_cast<std::size_t>(weights_.config.head_dim);
      for (std::size_t i = 0; i < found.size(); ++i) {
        const std::size_t half = i % head / (head / 2), j = i % (head / 2);
        found[i] = stored[i / head * head + 2 * j + half];
      }
      permuted |= found != stored;
    }
    expect_near(found, correction(*weights_.linear(f.id).compensator, x), f.id.name());
  }
  EXPECT_TRUE(permuted);
}

TEST_F(LoraWriter, MeanOfGatesGoesIntoA) {
  add_compensators(weights_, 3);
  EXPECT_THROW(lora_factors(weights_, {}), Error);
  MeanGates gates(static_cast<std::size_t>(module_count(weights_.config)));
  for (int index = 0; index < module_count(weights_.config); ++index) {
    auto& compensator = weights_.linear({index}).compensator;
    if (!compensator || compensator->gate.hidden == 0) continue;
    for (std::int64_t r = 0; r < compensator->rank; ++r) {
      gates[static_cast<std::size_t>(index)].push_back(0.5F + 0.25F * static_cast<float>(r));
    }
  }
  const auto with = lora_factors(weights_, gates);
  for (auto& layer : weights_.layers) {
    for (auto& module : layer.linears) {
      if (module.compensator) module.compensator->gate = {};
    }
  }
  const auto plain = lora_factors(weights_, {});
  int folded = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(with[i].b, plain[i].b);
    for (std::size_t at = 0; at < plain[i].a.size(); ++at) {
      const auto row = static_cast<float>(at / static_cast<std::size_t>(plain[i].in_features));
      const bool gated = !gates[static_cast<std::size_t>(plain[i].id.index)].empty();
      EXPECT_FLOAT_EQ(with[i].a[at], plain[i].a[at] * (gated ? 0.5F + 0.25F * row : 1.0F));
      folded += gated && plain[i].a[at] != 0;
    }
  }
  EXPECT_GT(folded, 0);
  ModelWeights none = tiny_model({.scheme = W4Scheme{}});
  EXPECT_THROW(lora_factors(none, {}), Error);
}

}  // namespace
}  // namespace spear
