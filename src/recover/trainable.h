// Everything that calibration trains, and how it becomes the tensors of a forward pass: int8 factors, f16 scales and
// gains are rounded inside the forward pass, so that what is trained is what will be stored.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/weights.h"
#include "quant/model_quantizer.h"
#include "recover/code_step.h"
#include "torch/libtorch.h"
#include "torch/torch_model.h"

namespace spear {

/// What `--tune` allows to move beside the compensators.
enum class Tune { none, scales, codes };

/// Parameters with one learning rate each.
enum class ParameterGroup { factors, gate, scales, gains, count };
constexpr std::size_t kParameterGroups = static_cast<std::size_t>(ParameterGroup::count);

/// A small parameter under Adam.
struct Parameter {
  std::string name;
  ParameterGroup group;
  torch::Tensor value, moment, second;
};

/// Compensators of the modules that share an input, when they share A; else of one module.
struct CompensatorShape {
  std::vector<ModuleId> members;
  std::int64_t rank = 0, gate_rows = 0, gate_hidden = 0;
};

/// Starting values of one CompensatorShape.
struct CompensatorStart {
  CompensatorShape shape;
  torch::Tensor a;               ///< [rank + gate_rows, in] float32
  std::vector<torch::Tensor> b;  ///< per member [out, rank] float32
  torch::Tensor sigma;           ///< [rank + gate_rows]: RMS of each z over calibration
};

/// Factors of the quantizer's chain cut to a shape: the leading `rank` ranks, then the gate's rows.
CompensatorStart start_from(const CompensatorShape& shape, const ChainFactors& factors);

class TrainableModel {
 public:
  /// `quantized` by ModuleId. The model's slots are overwritten and keep pointing at tensors of this object.
  TrainableModel(TorchModel& model, const std::vector<QuantizedLinear>& quantized, const std::vector<torch::Tensor>& latents,
                 const std::vector<CompensatorStart>& compensators, Tune tune, std::uint64_t seed);

  /// Puts effective tensors (with gradients) into the model's slots; `int8_factors` rounds A and B to what is stored.
  void install(bool int8_factors, bool gates_on);

  /// One optimizer step from the gradients that the last backward pass left. rates: by ParameterGroup.
  struct Rates {
    double codes = 0;
    std::array<double, kParameterGroups> groups{};
    double beta1 = 0.9, beta2 = 0.95;
  };
  void step(const Rates& rates);

  /// Everything a run needs to continue exactly where it was.
  TensorMap state() const;
  void load_state(const TensorMap& state);

  /// Codes, scales, gains and compensators as they will be stored, put into a copy of `base`, whose linears stay where they
  /// are not in 4 bit.
  ModelWeights export_weights(const ModelWeights& base) const;
  /// Bytes of all compensators as stored.
  std::int64_t compensator_bytes() const;

  /// Values of everything trained that is not a latent, and the codes; for keeping the best state.
  struct Snapshot {
    std::vector<torch::Tensor> parameters, codes;
  };
  Snapshot snapshot() const;
  void restore(const Snapshot& snapshot);

  Tune tune() const { return tune_; }
  std::int64_t steps_done() const { return steps_; }

 private:
  struct Factors {
    CompensatorShape shape;
    torch::Tensor sigma;
    std::size_t a = 0;                         ///< index into parameters_
    std::vector<std::size_t> b, w1, b1, w2, b2;  ///< per member; gate ones empty without a gate
  };

  std::size_t add(std::string name, ParameterGroup group, const torch::Tensor& value);
  const torch::Tensor& value(std::size_t index) const { return parameters_[index].value; }
  /// Whether codes or group scales train: both need dL/dweight. Row scales alone multiply the output instead.
  bool needs_weight_gradients() const;
  torch::Tensor row_factor(std::size_t index) const;
  torch::Tensor scales(int index) const;
  torch::Tensor gain(std::size_t index) const;
  void refresh_weights();
  void add_compensator(const CompensatorStart& start, torch::Generator& generator);
  Compensator export_compensator(const Factors& factors, std::size_t member, std::shared_ptr<const CompensatorInput> a) const;

  TorchModel& model_;
  Tune tune_;
  std::int64_t steps_ = 0;
  std::vector<Parameter> parameters_;
  std::vector<LatentWeight> latents_;       ///< by ModuleId; empty tensors where a linear is not in 4 bit
  std::vector<torch::Tensor> base_scales_;  ///< by ModuleId, [out, groups]
  std::vector<NormId> norms_;               ///< that the model has
  std::vector<torch::Tensor> base_gains_;   ///< as norms_
  std::vector<torch::Tensor> weights_;      ///< by ModuleId: leaves in the compute type
  std::vector<std::size_t> scale_parameters_, gain_parameters_;  ///< empty when not tuned
  std::vector<Factors> factors_;
};

}  // namespace spear
