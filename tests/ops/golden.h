// Models of tests/data with logits of Hugging Face transformers (tests/golden/), and this program's logits for them.
#pragma once

#include <cfloat>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "io/model_reader.h"
#include "io/safetensors.h"
#include "ops/comparison.h"

namespace spear::testing {

struct Golden {
  ModelWeights weights;
  std::vector<std::int32_t> tokens;
  std::vector<double> logits;
  std::int64_t batch = 0, length = 0;
};

/// `model`: what is read of the folder, which itself is the Hugging Face directory.
inline Golden read_golden(const std::string& folder, const std::string& model = "") {
  const auto path = std::filesystem::path(SPEAR_TEST_DATA) / folder;
  Golden out;
  out.weights = read_model(model.empty() ? path : path / model);
  const auto file = read_safetensors(path / "golden.tensors");
  out.tokens = to_vector<std::int32_t>(file.tensors.at("tokens"));
  const auto logits = file.tensors.at("logits").to_floats();
  out.logits.assign(logits.begin(), logits.end());
  out.batch = file.tensors.at("tokens").dim(0);
  out.length = file.tensors.at("tokens").dim(1);
  return out;
}

/// Rounding of float32 sums of k terms, accumulated along the linears that a token passes (four per layer, head,
/// norms).
inline double golden_tolerance(const ModelConfig& config) {
  const double k = static_cast<double>(std::max(config.hidden_size, config.intermediate_size));
  return FLT_EPSILON * std::sqrt(k) * (4.0 * static_cast<double>(config.num_hidden_layers) + 2.0);
}

inline std::vector<float> logits_of(ForwardModel& model, const Golden& golden) {
  const auto hidden = model.hidden_states({golden.tokens, golden.batch, golden.length}, nullptr);
  std::vector<float> out(golden.logits.size());
  model.logits(hidden, out);
  return out;
}

inline std::vector<float> reference_logits(const ModelWeights& weights, const Golden& golden) {
  RefOps ops(weights);
  TokenBatch batch{golden.tokens, golden.batch, golden.length};
  const auto out = ref::linear(transformer(ops, weights.config, batch), ref::dequantize(weights.head()));
  return {out.values.begin(), out.values.end()};
}

inline constexpr const char* kFamilyGoldens[] = {"llama3",       "llama-linear-biases", "mistral-window", "mistral-plain",
                                                 "qwen2",        "qwen2-window",        "qwen3",          "qwen3-biases",
                                                 "gemma3",       "gemma3-new",          "gemma3-gguf",    "llama-gguf"};

}  // namespace spear::testing
