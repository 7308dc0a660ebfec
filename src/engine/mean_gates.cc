#include "engine/mean_gates.h"

#include <string_view>
#include <vector>

#include "ops/cpu/kernels.h"

namespace spear {
namespace {

class GateMeter {
 public:
  explicit GateMeter(const ModelWeights& weights)
      : weights_(weights), sums_(static_cast<std::size_t>(module_count(weights.config))) {}

  /// The intermediates of model/transformer.h that linears read, or whose norm they read.
  void observe(std::string_view name, std::int64_t layer, std::span<const float> values) {
    const ModelConfig& config = weights_.config;
    if (name == "embed" || (name == "layer" && layer + 1 < config.num_hidden_layers)) {
      const auto x = normalized(values, NormId::input(layer + 1));
      for (const LinearKind kind : {LinearKind::q_proj, LinearKind::k_proj, LinearKind::v_proj}) add(layer + 1, kind, x);
    } else if (name == "attention") {
      add(layer, LinearKind::o_proj, values);
    } else if (name == "post_attention") {
      const auto x = normalized(values, NormId::post_attention(layer));
      for (const LinearKind kind : {LinearKind::gate_proj, LinearKind::up_proj}) add(layer, kind, x);
    } else if (name == "gated_act") {
      add(layer, LinearKind::down_proj, values);
    }
  }

  MeanGates means() const {
    MeanGates result(sums_.size());
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      for (const double sum : sums_[i].gates) result[i].push_back(static_cast<float>(sum / static_cast<double>(sums_[i].tokens)));
    }
    return result;
  }

 private:
  struct Sums {
    std::vector<double> gates;
    std::int64_t tokens = 0;
  };

  /// RMSNorm of every row under that gain.
  std::vector<float> normalized(std::span<const float> values, NormId id) const {
    const auto gain = weights_.gain(id).to_floats();
    std::vector<float> out(values.size());
    for (std::size_t row = 0; row < out.size(); row += gain.size()) {
      default_kernels().rms_norm(&values[row], gain.data(), static_cast<std::int64_t>(gain.size()),
                                 static_cast<float>(weights_.config.rms_norm_eps), &out[row]);
    }
    return out;
  }

  void add(std::int64_t layer, LinearKind kind, std::span<const float> x) {
    const ModuleId id = ModuleId::of(layer, kind);
    const auto& compensator = weights_.linear(id).compensator;
    if (!compensator || compensator->gate.hidden == 0) return;
    Sums& sums = sums_[static_cast<std::size_t>(id.index)];
    sums.gates.resize(static_cast<std::size_t>(compensator->rank));
    std::vector<float> z(static_cast<std::size_t>(compensator->a->rows)), g(sums.gates.size());
    const auto width = static_cast<std::size_t>(compensator->in_features());
    for (std::size_t row = 0; row < x.size(); row += width) {
      project(*compensator->a, x.subspan(row, width), z);
      gate_values(*compensator, z, g);
      for (std::size_t r = 0; r < g.size(); ++r) sums.gates[r] += g[r];
      ++sums.tokens;
    }
  }

  const ModelWeights& weights_;
  std::vector<Sums> sums_;
};

}  // namespace

MeanGates measure_mean_gates(CpuModel& model, std::span<const std::int32_t> tokens, std::int64_t length) {
  GateMeter meter(model.weights());
  model.set_observer([&](std::string_view name, std::int64_t layer, std::span<const float> values) {
    meter.observe(name, layer, values);
  });
  for (std::size_t begin = 0; begin < tokens.size(); begin += static_cast<std::size_t>(length)) {
    model.hidden_states({tokens.subspan(begin, static_cast<std::size_t>(length)), 1, length}, nullptr);
  }
  model.set_observer({});
  return meter.means();
}

bool has_gates(const ModelWeights& weights) {
  for (const auto& layer : weights.layers) {
    for (const auto& module : layer.linears) {
      if (module.compensator && module.compensator->gate.hidden > 0) return true;
    }
  }
  return false;
}

}  // namespace spear
