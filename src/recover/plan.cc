#include "recover/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/weights.h"

namespace spear {
namespace {

/// Sums over a model's shape that costs are made of.
struct Work {
  explicit Work(const ModelConfig& config) {
    for (int index = 0; index < module_count(config); ++index) {
      const ModuleId id{index};
      const auto rows = static_cast<double>(out_features(config, id.kind()));
      const auto cols = static_cast<double>(in_features(config, id.kind()));
      linears += rows * cols;
      rounding += rows * cols * cols;
      if (id.input_group() != id) continue;
      moments += cols * cols;
      factors += cols * cols * cols;
    }
    head = static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size);
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) windows.push_back(config.window(layer));
    width = static_cast<double>(config.q_size());
  }
  /// FLOP of attention per token of a sequence, on average.
  double attention(std::int64_t length) const {
    double seen = 0;
    for (const std::int64_t window : windows) {
      seen += static_cast<double>(window > 0 ? std::min(window, length / 2) : length / 2);
    }
    return 4 * seen * width;
  }

  double linears = 0, head = 0;     ///< weights
  double moments = 0, factors = 0;  ///< in², in³ over distinct inputs
  double rounding = 0;              ///< rows * in²
  double width = 0;
  std::vector<std::int64_t> windows;
};

// Seconds per FLOP of each kind of work: SmolLM2-135M, preset quick (256 x 128 tokens for the quantizer), two Zen 4 cores:
// 166, 82, 49, 172 and 180 s; diagnosis and evaluation from slower cores (docs/formats.md), scaled as times are; sampling
// is half of what libtorch took there, which is what the online plane took elsewhere.
constexpr double kDecode = 1.8e-12, kDecodeAttention = 3.5e-11, kStates = 3.5e-12, kQuantize = 4.6e-12,
                 kDiagnose = 2.9e-12, kTrain = 4.5e-12, kEvaluate = 4.4e-12;
// Of the quantizer beside its products over tokens: searches, per weight; factorizations and updates between columns, in
// float64 or in little pieces, per FLOP (a 1B shape on two Zen 3 cores and on 16 of a server).
constexpr double kRound = 2.6e-7, kFactor = 1.6e-11;
constexpr double kSampleBandwidth = 45e9;  ///< bytes per second: few sequences wait for weights
// The same preset in float32, on two Zen 3 and on two Emerald Rapids cores: what is no product moves twice the bytes; the
// quantizer's is float32 anyway.
constexpr double kFloat32 = 1.45, kFloat32Quantize = 1.05;
constexpr double kClosedForm = 0.25;  // of the chain's time, without its rounding (H200: 14 of 58 s)
constexpr double kRows = 4;  // of the table: reference, RTN, quantized, recovered

/// Whether the quantizer, or the closed form behind it, looks at sampled text.
bool quantizer_samples(const Recipe& recipe, PlannedCommand command) {
  return recipe.quantizer != "rtn" || (command == PlannedCommand::recover && recipe.budget > 0);
}

}  // namespace

Needs estimate_needs(const ModelConfig& config, const Recipe& recipe, PlannedCommand command, std::int64_t compute_bytes,
                     std::int64_t reference_bytes) {
  double linears = 0, widest = 0;
  for (int index = 0; index < module_count(config); ++index) {
    linears += static_cast<double>(in_features(config, ModuleId{index}.kind()) * out_features(config, ModuleId{index}.kind()));
    widest = std::max(widest, static_cast<double>(in_features(config, ModuleId{index}.kind())));
  }
  const double embedding = static_cast<double>(config.vocab_size * config.hidden_size);
  const double layers = static_cast<double>(config.num_hidden_layers);
  const auto wide = static_cast<double>(compute_bytes);
  // Bytes per weight: the reference, and once more if it is rotated; codes rounded to nearest, without and with
  // compensators, and one packed model. On top, whichever is more: training (the student, dL/dweight where codes or group
  // scales train, and for codes targets of both quantizer runs 8, latents 4 and their best 1) or a float32 model to measure.
  const double held = static_cast<double>(reference_bytes) * (recipe.rotation == Rotation::stream ? 2 : 1) + 3.5;
  const bool weight_gradients = recipe.tune == Tune::codes || (recipe.tune == Tune::scales && recipe.scheme.group_size != 0);
  const double student = wide * (weight_gradients ? 2 : 1) + (recipe.tune == Tune::codes ? 13 : 0);
  const double per_weight = held + std::max(student, 4.0);
  // Activations that one step keeps, per token and layer (inputs and outputs of the linears, f32 stream, softmax).
  const double per_token = layers * ((8 + 3 * wide) * static_cast<double>(config.hidden_size) + 5 * wide * static_cast<double>(config.intermediate_size) +
                                     2 * wide * static_cast<double>(config.q_size() + 2 * config.kv_size()) +
                                     wide * static_cast<double>(config.num_attention_heads * recipe.train.sequence_length));
  const double logits = 2 * 512.0 * 4 * static_cast<double>(config.vocab_size);
  const double states = 2.0 * static_cast<double>(recipe.samples.sequences * recipe.samples.length * config.hidden_size);
  // The quantizer keeps one layer's activations of all its tokens: the streams of two networks, before and behind a block,
  // what the linears of one read, and gate and up of the other. Beside them one layer's weights, four times while it rounds
  // them, and moments of the widest input in both precisions.
  const bool needs_inputs = quantizer_samples(recipe, command);
  const double quantizer_token = (24 + 5 * wide) * static_cast<double>(config.hidden_size) + wide * static_cast<double>(config.q_size()) +
                                 3 * wide * static_cast<double>(config.intermediate_size);
  const double quantizing = !needs_inputs ? 0.0
      : static_cast<double>(recipe.quantizer_sequences * recipe.quantizer_length) * quantizer_token + 16 * linears / layers + 40 * widest * widest;
  const double training = per_token * static_cast<double>(recipe.train.tokens_per_step) + logits;
  const double rotated = recipe.rotation == Rotation::stream ? static_cast<double>(reference_bytes) : 0;
  Needs needs;
  // What is rotated lies in the workspace; a reference in 16 bit is a safetensors directory, one of GGUF is dequantized.
  needs.mapped = static_cast<std::int64_t>((rotated + (reference_bytes == 2 ? 2 : 0)) * linears);
  if (command == PlannedCommand::quantize) {
    // Layer by layer: of all layers at once there are only codes, in a byte each, and later packed. Before, a model in bf16
    // that samples.
    const double sampling = needs_inputs ? 2 * (linears + embedding) : 0;
    needs.memory = needs.mapped + static_cast<std::int64_t>(std::max(sampling, 1.5 * linears + quantizing) + 8 * embedding + 3e8);
    needs.disk = static_cast<std::int64_t>((2 + rotated) * linears + 2 * embedding);
    return needs;
  }
  needs.memory = static_cast<std::int64_t>(per_weight * linears + 8 * embedding + states + std::max(training, quantizing) + 3e8);
  needs.disk = static_cast<std::int64_t>((rotated + (recipe.tune == Tune::codes ? 26 : 14)) * linears + states + 2 * embedding);
  return needs;
}

PlannedBytes planned_bytes(const ModelConfig& config, const Recipe& recipe) {
  PlannedBytes bytes;
  std::int64_t packed = 0, weights = 0;
  for (int index = 0; index < module_count(config); ++index) {
    const ModuleId id{index};
    W4Matrix shape;
    shape.rows = out_features(config, id.kind());
    shape.cols = in_features(config, id.kind());
    shape.scheme = recipe.scheme;
    packed += shape.storage_bytes();
    weights += shape.rows * shape.cols;
  }
  const std::int64_t tables = config.tie_word_embeddings ? 1 : 2, embedding = tables * config.vocab_size * config.hidden_size;
  bytes.reference = 2 * (weights + embedding);
  bytes.budget_base = packed + tables * int8_matrix_bytes(config.vocab_size, config.hidden_size);
  bytes.compensators = static_cast<std::int64_t>(recipe.budget * static_cast<double>(bytes.budget_base));
  bytes.quantized = packed + 2 * embedding + bytes.compensators;
  return bytes;
}

std::vector<PlannedStage> planned_stages(const ModelConfig& config, const Recipe& recipe, PlannedCommand command,
                                         std::int64_t text_tokens, const ProductSpeed& speed) {
  const Work work(config);
  // Half of what a stage does is products, the rest is as fast as float32 (two Zen 5 cores: 857 and 472 GFLOP/s).
  const double mean = 2 / (1 / speed.gflops + 1 / speed.float32_gflops);
  const double pace = (speed.compute_bytes > 2 ? kFloat32 : 1.0) * kPlannedGflops / mean;
  const double quantizer_pace = kFloat32Quantize * kPlannedGflops / speed.float32_gflops;
  const double evaluation_pace = kFloat32 * kPlannedGflops / speed.float32_gflops;
  const auto tokens_of = [](std::int64_t sequences, std::int64_t length) { return static_cast<double>(sequences * length); };
  const double sampled = tokens_of(recipe.samples.sequences, recipe.samples.length);
  const double quantizer_tokens = tokens_of(recipe.quantizer_sequences, recipe.quantizer_length);
  const auto sampling = [&](std::int64_t sequences, std::int64_t length) {
    const double computing = pace * tokens_of(sequences, length) *
                             (2 * (work.linears + work.head) * kDecode + work.attention(length) * kDecodeAttention);
    // However fast products are, the weights are read once per step of a batch.
    const std::int64_t batch = std::max<std::int64_t>(1, recipe.samples.batch * recipe.samples.length / length);
    const double steps = static_cast<double>((sequences + batch - 1) / batch * length);
    return std::max(computing, steps * 2 * (work.linears + work.head) / kSampleBandwidth);
  };
  const bool recovers = command == PlannedCommand::recover;
  const bool chain = recipe.quantizer == "tuned" || recipe.quantizer == "gptq";
  const double quantizing = quantizer_pace *
                            (kQuantize * quantizer_tokens * (4 * work.linears + 6 * work.moments) + kRound * work.linears +
                             kFactor * 4 * (work.rounding + work.factors));
  std::vector<PlannedStage> stages;
  if (recovers) {
    stages.push_back({"samples", fmt::format("{:.0f}k tokens from the reference", sampled / 1e3),
                      sampling(recipe.samples.sequences, recipe.samples.length)});
  }
  if (quantizer_samples(recipe, command)) {
    stages.push_back({"samples of the quantizer", fmt::format("{:.0f}k tokens", quantizer_tokens / 1e3),
                      sampling(recipe.quantizer_sequences, recipe.quantizer_length)});
  }
  stages.push_back({"quantize", recipe.quantizer, (chain ? 1.0 : recipe.quantizer == "clip" ? kClosedForm : 0.02) * quantizing});
  if (!recovers) return stages;
  const double diagnosed = tokens_of(std::min(recipe.diagnose.sequences, recipe.held_out_sequences), std::min(recipe.diagnose.length, recipe.samples.length)) * module_count(config);
  if (recipe.budget > 0) {
    stages.push_back({"diagnose", recipe.diagnose.restore_one ? "quantize one, restore one, delta KL, Fisher" : "quantize one, Fisher",
                      pace * kDiagnose * (recipe.diagnose.restore_one ? 2 : 1) * diagnosed * (work.linears + 2 * work.head)});
  }
  stages.push_back({"reference states", "of the samples",
                    pace * kStates * sampled * (2 * work.linears + work.attention(recipe.samples.length))});
  if (recipe.budget > 0) {
    stages.push_back(chain ? PlannedStage{"quantize behind compensators", "closed form", quantizing}
                           : PlannedStage{"closed form", "two whitenings", kClosedForm * quantizing});
  }
  const double trained = tokens_of(recipe.train.steps, recipe.train.tokens_per_step);
  const double passes = recipe.tune == Tune::codes ? 8 : 6;
  stages.push_back({"calibrate", fmt::format("{} steps of {} tokens", recipe.train.steps, recipe.train.tokens_per_step),
                    pace * kTrain * trained * (passes * work.linears + 6 * work.head +
                                               3 * work.attention(recipe.train.sequence_length))});
  const double measured = text_tokens > 0 ? static_cast<double>(text_tokens)
                                          : tokens_of(recipe.held_out_sequences / 2, recipe.samples.length);
  stages.push_back({"evaluate", fmt::format("{:.0f}k tokens, {} models", measured / 1e3, kRows),
                    evaluation_pace * kEvaluate * kRows * measured * 2 * (work.linears + work.head)});
  return stages;
}

}  // namespace spear
