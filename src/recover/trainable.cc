#include "recover/trainable.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

/// Straight through: the value of `rounded`, the gradient of `smooth`.
torch::Tensor straight_through(const torch::Tensor& smooth, const torch::Tensor& rounded) {
  return smooth + (rounded - smooth).detach();
}

/// Rounded to int8 with one f16 scale along `dimension` reduced (1: per row, 0: per column), as quantize_rows_int8.
torch::Tensor round_int8(const torch::Tensor& factor, std::int64_t dimension) {
  torch::NoGradGuard no_grad;
  const auto scale = (factor.abs().amax(dimension, true) / 127.0).to(torch::kFloat16).to(torch::kFloat32);
  const auto safe = torch::where(scale > 0, scale, torch::ones_like(scale));
  return torch::round(factor / safe).clamp(-127, 127) * scale;
}

/// A copy in row-major order: the order decides how products round, and what was read from a file has it.
torch::Tensor own(const torch::Tensor& t, torch::Device device) {
  return t.detach().to(device, torch::kFloat32).clone(torch::MemoryFormat::Contiguous);
}

torch::Tensor round_bf16(const torch::Tensor& t) { return t.detach().to(torch::kBFloat16).to(torch::kFloat32); }

const Tensor& require_state(const TensorMap& state, const std::string& name) {
  const auto found = state.find(name);
  if (found == state.end()) throw bad_input("tensor is missing", "training state: " + name, "run again without --resume");
  return found->second;
}

}  // namespace

CompensatorStart start_from(const CompensatorShape& shape, const ChainFactors& factors) {
  const std::int64_t rows = shape.rank + shape.gate_rows;
  const auto cut = [rows](const torch::Tensor& t) {  // missing directions start at zero
    return torch::constant_pad_nd(t, t.dim() == 2 ? std::vector<std::int64_t>{0, 0, 0, std::max<std::int64_t>(0, rows - t.size(0))}
                                                  : std::vector<std::int64_t>{0, std::max<std::int64_t>(0, rows - t.size(0))})
        .narrow(0, 0, rows);
  };
  CompensatorStart start{shape, cut(factors.a), {}, cut(factors.sigma).clamp_min(1e-6)};
  for (const auto& b : factors.b) start.b.push_back(cut(b.t()).narrow(0, 0, shape.rank).t().contiguous());
  return start;
}

TrainableModel::TrainableModel(TorchModel& model, const std::vector<QuantizedLinear>& quantized,
                               const std::vector<torch::Tensor>& latents, const std::vector<CompensatorStart>& compensators,
                               Tune tune, std::uint64_t seed)
    : model_(model), tune_(tune) {
  torch::NoGradGuard no_grad;
  const auto device = model.device();
  for (std::size_t i = 0; i < quantized.size(); ++i) {
    const QuantizedLinear& q = quantized[i];
    if (q.values.defined()) {
      if (tune != Tune::none) throw failed("a linear that is not in 4 bit has nothing to tune", ModuleId{static_cast<int>(i)}.name());
      latents_.push_back({q.scheme, {}, {}});
      base_scales_.emplace_back();
      weights_.push_back(q.values.to(device, model.compute_type()));
      continue;
    }
    const auto latent = tune == Tune::codes ? own(latents.empty() ? q.codes : latents[i], device) : q.codes.to(device).contiguous();
    latents_.push_back({q.scheme, latent, own(q.zeros, device), q.group_index});
    base_scales_.push_back(own(q.scales, device));
    weights_.push_back(torch::empty(q.codes.sizes(), torch::TensorOptions().dtype(model.compute_type()).device(device)));
    if (tune != Tune::none) {
      scale_parameters_.push_back(add(ModuleId{static_cast<int>(i)}.name() + ".log_scale", ParameterGroup::scales,
                                      torch::zeros_like(base_scales_.back())));
      weights_.back().set_requires_grad(needs_weight_gradients());
    }
  }
  for (const NormId id : norms_of(model.config())) {
    const auto& gain = model.weights().gains[static_cast<std::size_t>(id.index)];
    norms_.push_back(id);
    base_gains_.push_back(gain.detach().clone());
    if (tune != Tune::none) {
      gain_parameters_.push_back(add(fmt::format("gain.{}", id.index), ParameterGroup::gains, torch::zeros_like(gain)));
    }
  }
  auto generator = at::detail::createCPUGenerator(seed);
  for (const auto& start : compensators) add_compensator(start, generator);
  refresh_weights();
}

std::size_t TrainableModel::add(std::string name, ParameterGroup group, const torch::Tensor& value) {
  auto leaf = own(value, model_.device()).set_requires_grad(true);
  parameters_.push_back({std::move(name), group, leaf, torch::zeros_like(leaf), torch::zeros_like(leaf)});
  return parameters_.size() - 1;
}

void TrainableModel::add_compensator(const CompensatorStart& start, torch::Generator& generator) {
  const CompensatorShape& shape = start.shape;
  Factors factors;
  factors.shape = shape;
  factors.sigma = own(start.sigma, model_.device());
  const std::string name = shape.members.front().name();
  factors.a = add(name + ".A", ParameterGroup::factors, start.a);
  for (std::size_t m = 0; m < shape.members.size(); ++m) {
    const std::string member = shape.members[m].name();
    factors.b.push_back(add(member + ".B", ParameterGroup::factors, start.b[m]));
    if (shape.gate_hidden == 0) continue;
    const std::int64_t inputs = shape.rank + shape.gate_rows;
    const auto w1 = torch::randn({shape.gate_hidden, inputs}, generator) / std::sqrt(static_cast<double>(inputs));
    factors.w1.push_back(add(member + ".W1", ParameterGroup::gate, w1));
    factors.b1.push_back(add(member + ".b1", ParameterGroup::gate, torch::zeros({shape.gate_hidden})));
    // Zero: training starts at the static compensator.
    factors.w2.push_back(add(member + ".W2", ParameterGroup::gate, torch::zeros({shape.rank, shape.gate_hidden})));
    factors.b2.push_back(add(member + ".b2", ParameterGroup::gate, torch::zeros({shape.rank})));
  }
  factors_.push_back(std::move(factors));
}

torch::Tensor TrainableModel::scales(int index) const {
  torch::NoGradGuard no_grad;
  const auto i = static_cast<std::size_t>(index);
  if (scale_parameters_.empty()) return base_scales_[i];
  return (base_scales_[i] * value(scale_parameters_[i]).exp()).to(torch::kFloat16).to(torch::kFloat32).contiguous();
}

bool TrainableModel::needs_weight_gradients() const {
  return tune_ == Tune::codes || (tune_ == Tune::scales && latents_.front().scheme.group_size != 0);
}

torch::Tensor TrainableModel::row_factor(std::size_t index) const {
  if (tune_ != Tune::scales || needs_weight_gradients()) return {};
  const auto& base = base_scales_[index];
  return (round_to_f16(base * value(scale_parameters_[index]).exp()) / base).squeeze(1);
}

torch::Tensor TrainableModel::gain(std::size_t index) const {
  if (gain_parameters_.empty()) return base_gains_[index];
  return round_to_f16(base_gains_[index] * (1.0 + value(gain_parameters_[index])));
}

void TrainableModel::refresh_weights() {
  torch::NoGradGuard no_grad;
  // With row factors, weights hold the starting scales and the factors the rest.
  const bool starting = tune_ == Tune::scales && !needs_weight_gradients();
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (!latents_[i].latent.defined()) continue;
    write_weight(latents_[i], starting ? base_scales_[i] : scales(static_cast<int>(i)), weights_[i]);
  }
}

void TrainableModel::install(bool int8_factors, bool gates_on) {
  TorchWeights& slots = model_.weights();
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    slots.linears[i].weight = weights_[i];
    slots.linears[i].row_factor = row_factor(i);
    slots.linears[i].compensator.reset();
  }
  for (std::size_t i = 0; i < norms_.size(); ++i) slots.gains[static_cast<std::size_t>(norms_[i].index)] = gain(i);
  for (const Factors& f : factors_) {
    const auto& a = value(f.a);
    const auto stored_a = int8_factors ? straight_through(a, round_int8(a, 1)) : a;
    for (std::size_t m = 0; m < f.shape.members.size(); ++m) {
      const auto& b = value(f.b[m]);
      TorchCompensator c;
      c.a = stored_a;
      c.b = int8_factors ? straight_through(b, round_int8(b, 0)) : b;
      if (f.shape.gate_hidden > 0 && gates_on) {
        const auto stored = [&](const torch::Tensor& t) { return int8_factors ? straight_through(t, round_bf16(t)) : t; };
        c.w1 = stored(value(f.w1[m]) / f.sigma);
        c.b1 = stored(value(f.b1[m]));
        c.w2 = stored(value(f.w2[m]));
        c.b2 = stored(value(f.b2[m]));
      }
      model_.linear(f.shape.members[m]).compensator = std::move(c);
    }
  }
}

void TrainableModel::step(const Rates& rates) {
  torch::NoGradGuard no_grad;
  ++steps_;
  if (needs_weight_gradients()) {
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      const auto& gradient = weights_[i].grad();
      parameters_[scale_parameters_[i]].value.mutable_grad() = log_scale_gradient(gradient, weights_[i], latents_[i].scheme, latents_[i].group_index);
      if (tune_ == Tune::codes && rates.codes > 0) step_codes(latents_[i], scales(static_cast<int>(i)), gradient, rates.codes);
      weights_[i].mutable_grad() = torch::Tensor();
    }
  }
  // Lists, not loops over parameters: on a GPU each list is a few launches.
  const double correct1 = 1 - std::pow(rates.beta1, steps_), correct2 = 1 - std::pow(rates.beta2, steps_);
  for (std::size_t group = 0; group < kParameterGroups; ++group) {
    std::vector<torch::Tensor> values, gradients, moments, seconds;
    for (Parameter& p : parameters_) {
      auto& gradient = p.value.mutable_grad();
      if (static_cast<std::size_t>(p.group) != group || !gradient.defined()) continue;
      values.push_back(p.value);
      gradients.push_back(gradient);
      moments.push_back(p.moment);
      seconds.push_back(p.second);
      gradient = torch::Tensor();
    }
    if (values.empty()) continue;
    torch::_foreach_mul_(moments, rates.beta1);
    torch::_foreach_add_(moments, gradients, 1 - rates.beta1);
    torch::_foreach_mul_(seconds, rates.beta2);
    torch::_foreach_addcmul_(seconds, gradients, gradients, 1 - rates.beta2);
    if (rates.groups[group] <= 0) continue;
    auto scale = torch::_foreach_div(seconds, correct2);
    torch::_foreach_sqrt_(scale);
    torch::_foreach_add_(scale, 1e-10);
    torch::_foreach_addcdiv_(values, moments, scale, -rates.groups[group] / correct1);
  }
  if (needs_weight_gradients()) refresh_weights();
}

TensorMap TrainableModel::state() const {
  TensorMap out;
  for (const Parameter& p : parameters_) {
    out.emplace(p.name, to_host(p.value));
    out.emplace(p.name + ".moment", to_host(p.moment));
    out.emplace(p.name + ".second", to_host(p.second));
  }
  if (tune_ == Tune::codes) {
    for (std::size_t i = 0; i < latents_.size(); ++i) {
      const std::string name = ModuleId{static_cast<int>(i)}.name();
      out.emplace(name + ".latent", to_host(latents_[i].latent));
    }
  }
  out.emplace("steps", Tensor::from_floats({1}, std::array{static_cast<float>(steps_)}));
  return out;
}

void TrainableModel::load_state(const TensorMap& state) {
  torch::NoGradGuard no_grad;
  const auto load = [&](const std::string& name, torch::Tensor& into) {
    const auto loaded = to_torch(require_state(state, name));
    if (loaded.sizes() != into.sizes()) throw bad_input("training state belongs to another run", name, "run again without --resume");
    into.copy_(loaded);
  };
  for (Parameter& p : parameters_) {
    load(p.name, p.value);
    load(p.name + ".moment", p.moment);
    load(p.name + ".second", p.second);
  }
  if (tune_ == Tune::codes) {
    for (std::size_t i = 0; i < latents_.size(); ++i) {
      const std::string name = ModuleId{static_cast<int>(i)}.name();
      load(name + ".latent", latents_[i].latent);
    }
  }
  steps_ = static_cast<std::int64_t>(require_state(state, "steps").to_floats().at(0));
  refresh_weights();
}

TrainableModel::Snapshot TrainableModel::snapshot() const {
  torch::NoGradGuard no_grad;
  Snapshot out;
  for (const Parameter& p : parameters_) out.parameters.push_back(p.value.detach().clone());
  if (tune_ == Tune::codes) {
    for (const auto& latent : latents_) out.codes.push_back(nearest_codes(latent.latent));
  }
  return out;
}

void TrainableModel::restore(const Snapshot& snapshot) {
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) parameters_[i].value.copy_(snapshot.parameters[i]);
  for (std::size_t i = 0; i < snapshot.codes.size(); ++i) latents_[i].latent.copy_(snapshot.codes[i]);
  refresh_weights();
}

Compensator TrainableModel::export_compensator(const Factors& f, std::size_t member,
                                               std::shared_ptr<const CompensatorInput> a) const {
  Compensator c;
  c.rank = f.shape.rank;
  c.gate_rows = f.shape.gate_rows;
  c.a = std::move(a);
  const auto b = to_host(value(f.b[member]).t().contiguous());  // [rank, out]: one scale per rank
  c.out_features = b.dim(1);
  std::vector<std::int8_t> transposed;
  quantize_rows_int8(b.as<float>(), c.rank, c.out_features, transposed, c.b_scales);
  c.b.resize(transposed.size());
  for (std::int64_t r = 0; r < c.rank; ++r) {
    for (std::int64_t o = 0; o < c.out_features; ++o) {
      c.b[static_cast<std::size_t>(o * c.rank + r)] = transposed[static_cast<std::size_t>(r * c.out_features + o)];
    }
  }
  if (f.shape.gate_hidden > 0) {
    c.gate.hidden = f.shape.gate_hidden;
    c.gate.w1 = bf16_bits(value(f.w1[member]) / f.sigma);
    c.gate.b1 = bf16_bits(value(f.b1[member]));
    c.gate.w2 = bf16_bits(value(f.w2[member]));
    c.gate.b2 = bf16_bits(value(f.b2[member]));
  }
  return c;
}

ModelWeights TrainableModel::export_weights(const ModelWeights& base) const {
  torch::NoGradGuard no_grad;
  ModelWeights out = base;
  for (int index = 0; index < static_cast<int>(latents_.size()); ++index) {
    const LatentWeight& latent = latents_[static_cast<std::size_t>(index)];
    auto& module = out.linear(ModuleId{index});
    module.compensator.reset();
    if (!latent.latent.defined()) continue;
    module.weight = QuantizedLinear{latent.scheme, nearest_codes(latent.latent), scales(index), latent.zeros, latent.group_index, {}}.pack();
  }
  for (std::size_t i = 0; i < norms_.size(); ++i) out.gain(norms_[i]) = to_host(gain(i));
  for (const Factors& f : factors_) {
    auto a = std::make_shared<CompensatorInput>();
    const auto host = to_host(value(f.a));
    a->rows = host.dim(0);
    a->cols = host.dim(1);
    quantize_rows_int8(host.as<float>(), a->rows, a->cols, a->values, a->scales);
    for (std::size_t m = 0; m < f.shape.members.size(); ++m) {
      out.linear(f.shape.members[m]).compensator = export_compensator(f, m, a);
    }
  }
  return out;
}

std::int64_t TrainableModel::compensator_bytes() const {
  std::int64_t bytes = 0;
  for (const Factors& f : factors_) {
    const std::int64_t rows = f.shape.rank + f.shape.gate_rows;
    bytes += rows * value(f.a).size(1) + 2 * rows;
    for (const std::size_t b : f.b) {
      bytes += value(b).numel() + 2 * f.shape.rank +
               2 * f.shape.gate_hidden * (rows + 1) + (f.shape.gate_hidden > 0 ? 2 * f.shape.rank * (f.shape.gate_hidden + 1) : 0);
    }
  }
  return bytes;
}

}  // namespace spear
