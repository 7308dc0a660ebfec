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

  const Recipe& recipe() const { return options_.recipe; }  ///< as given; the rotation is the backbone's, if there is one

  const ModelWeights& reference() const { return reference_; }
  /// The same function in the basis of what is quantized: rotated, or as the backbone has it.
  const ModelWeights& parent() const { return parent_ ? *parent_ : reference_; }
  const std::string& reference_sha256() const { return reference_sha256_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  torch::Device device() const { return device_; }
  torch::ScalarType compute() const { return compute_; }  ///< of the linears, but where results are measured: float32
  const std::vector<StageTime>& times() const { return times_; }

  const CalibrationSet& samples();
  const torch::Tensor& states();  ///< of the reference over samples(), bfloat16
  const std::vector<QuantizedLinear>& rtn();  ///< of the reference
  const ModelQuantization& quantized();
  const Damage& damage();
  Calibrated calibrate();

  /// Models in compute() of reference() and of parent(); one lives at a time, made when first asked for.
  TorchModel& reference_model() { return model_on(reference_); }
  TorchModel& parent_model() { return model_on(parent()); }
  void drop_model();
  /// The reference rounded to nearest, as it is.
  ModelWeights rtn_model() { return with_linears(reference_, rtn()); }

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
  bool keeps_file() const { return keeps_file_; }
  /// What is measured: with embeddings as they are rounded when `weights` are written; unchanged where the file is kept.
  ModelWeights as_stored(ModelWeights weights) const;
  /// The model before compensators: quantized() in parent(), or the backbone's own file.
  ModelWeights quantized_model();
  /// The result's files, into an existing directory.
  void write(const std::filesystem::path& directory, const ModelWeights& weights, const nlohmann::json& manifest) const;

  Workspace& workspace() { return workspace_; }
  nlohmann::json input_key() const;  ///< identifies reference and backbone

 private:
  static constexpr int kVersion = 10;  ///< raised when a stage's result changes for the same inputs

  /// In files of the workspace, so that its pages, like those of the reference's own files, are the system's to drop.
  ModelWeights rotated_reference() const;
  void read_given_backbone();
  TorchModel& model_on(const ModelWeights& weights);
  std::vector<QuantizedLinear> rounded(const ModelWeights& weights) const;
  /// `base` with these linears packed into it.
  static ModelWeights with_linears(const ModelWeights& base, const std::vector<QuantizedLinear>& linears);
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
  /// What stands around the quantized linears: norms, biases, embedding.
  const ModelWeights& student_base() const { return backbone_ ? *backbone_ : parent(); }
  TrainResult run_training(TorchModel& model, TrainableModel& trainable, const nlohmann::json& key);

  RecoverOptions options_;
  Workspace workspace_;
  ModelWeights reference_;
  std::optional<ModelWeights> parent_;  ///< empty: as the reference
  std::string reference_sha256_, backbone_sha256_;
  std::optional<ModelWeights> backbone_;  ///< without compensators
  bool keeps_file_ = false;
  std::filesystem::path backbone_gguf_;  ///< the file that is kept
  Tokenizer tokenizer_;
  torch::Device device_;
  torch::ScalarType compute_;
  std::unique_ptr<TorchModel> model_;
  const ModelWeights* model_weights_ = nullptr;  ///< what model_ is of
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
