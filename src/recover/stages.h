// The stages of a recovery over one workspace: each is computed once, kept, and found again.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "recover/pipeline.h"
#include "recover/workspace.h"
#include "text/tokenizer.h"

namespace spear {

struct StageTime {
  std::string name;
  double seconds = 0;
};

/// What calibration leaves behind.
struct Calibrated {
  ModelWeights weights;
  TrainResult train;
  std::vector<CompensatorShape> shapes;
  nlohmann::json placement, gates;
  std::string whitening;  ///< which closed form won
};

class Stages {
 public:
  /// Reads reference and tokenizer; the reference stays in host memory.
  explicit Stages(const RecoverOptions& options);

  const ModelWeights& reference() const { return reference_; }
  const std::string& reference_sha256() const { return reference_sha256_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  torch::Device device() const { return device_; }
  const std::vector<StageTime>& times() const { return times_; }

  const CalibrationSet& samples();
  const torch::Tensor& states();  ///< of the reference over samples(), bfloat16
  const std::vector<QuantizedLinear>& rtn();
  const ModelQuantization& quantized();
  const Damage& damage();
  Calibrated calibrate();

  /// A model of the reference's weights in bfloat16; made when first asked for.
  TorchModel& reference_model();
  void drop_reference_model() { model_.reset(); }
  /// Reference weights with these linears packed into them.
  ModelWeights with_linears(const std::vector<QuantizedLinear>& linears) const;

  /// Runs `body` and notes its time under `name`.
  template <class Body>
  auto timed(const std::string& name, Body&& body) {
    const auto start = std::chrono::steady_clock::now();
    auto result = body();
    times_.push_back({name, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()});
    return result;
  }

  /// The denominator of the budget: linears as given, else as the scheme packs them; embedding and head as shipped.
  std::int64_t budget_base() const;
  std::int64_t budget_embeddings() const;  ///< the part of it that embedding and head are

  /// Whether the backbone is a GGUF file that becomes part of the result, byte for byte: some linear is not 4-bit integers,
  /// as any but files in Q4_0 are. Embedding, head and norms are then the file's, too.
  bool keeps_file() const;
  /// What is measured: with embeddings as they are rounded when `weights` are written; unchanged where the file is kept.
  ModelWeights as_stored(ModelWeights weights) const;
  /// The model before compensators: quantized() in the reference, or the backbone's own file.
  ModelWeights quantized_model();
  /// The result's files, into an existing directory.
  void write(const std::filesystem::path& directory, const ModelWeights& weights, const nlohmann::json& manifest) const;

  Workspace& workspace() { return workspace_; }
  nlohmann::json input_key() const;  ///< identifies reference and backbone

 private:
  SampleOptions sample_options() const;
  /// Many short sequences: what the quantizer looks at gains more from diversity than from length (docs/algorithm.md).
  SampleOptions quantizer_sample_options() const;
  nlohmann::json sample_key(const SampleOptions& samples) const;
  CalibrationSet sample(const std::string& stage, const SampleOptions& samples);
  nlohmann::json quantize_key() const;
  torch::Tensor quantizer_tokens();
  std::vector<PlacementSite> sites() const;
  /// A quantizer run over the model with compensators of these ranks (by site), kept in the workspace.
  ModelQuantization run_quantizer(const std::string& stage, const std::vector<std::int64_t>& ranks, Whitening whitening);
  /// Ranks under the budget. `shares`, if not empty, by site: how much of its damage `measured` is about.
  std::vector<CompensatorShape> choose_shapes(const ModelQuantization& measured, nlohmann::json& placement,
                                              const std::vector<double>& shares = {});
  /// Linears and starting compensators that training begins with.
  struct Start {
    std::vector<QuantizedLinear> linears;
    std::vector<torch::Tensor> targets;
    std::vector<CompensatorStart> compensators;
  };
  Start closed_form(Calibrated& out);
  Start behind_given_linears(Calibrated& out);
  /// Train wide, truncate: one high rank everywhere, trained for a while, cut to the budget by what it learned.
  Start trained_wide(Calibrated& out);
  std::vector<torch::Tensor> latents(const Start& start) const;
  /// What stands around the quantized linears: the reference, or the file that is kept.
  const ModelWeights& student_base() const { return keeps_file_ ? *backbone_ : reference_; }
  TorchModel model_of(const std::vector<QuantizedLinear>& linears) const;
  TrainResult run_training(TorchModel& model, TrainableModel& trainable, const nlohmann::json& key);

  RecoverOptions options_;
  Workspace workspace_;
  ModelWeights reference_;
  std::string reference_sha256_, backbone_sha256_;
  std::optional<ModelWeights> backbone_;  ///< without compensators
  bool keeps_file_ = false;
  std::filesystem::path backbone_gguf_;  ///< the file that is kept
  Tokenizer tokenizer_;
  torch::Device device_;
  std::unique_ptr<TorchModel> model_;
  std::optional<CalibrationSet> samples_;
  torch::Tensor states_;
  std::optional<std::vector<QuantizedLinear>> rtn_;
  std::optional<ModelQuantization> quantized_;
  std::optional<Damage> damage_;
  std::vector<StageTime> times_;
};

/// SHA-256 of a model: of the file, or of the weight files of a directory together.
std::string model_sha256(const std::filesystem::path& model);

/// Mean, deviation and range of g over tokens [sequences, length], per module with a gate.
nlohmann::json gate_statistics(TorchModel& model, const torch::Tensor& tokens);

}  // namespace spear
