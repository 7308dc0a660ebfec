// The calibration stage: placement, closed-form start, training, export.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "recover/stages.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

constexpr std::int64_t kStartTokens = 8192;  ///< held-out tokens that choose between two starts

nlohmann::json curve_json(const std::vector<TrainPoint>& curve) {
  auto out = nlohmann::json::array();
  for (const auto& p : curve) out.push_back({p.step, p.loss, p.held_out_kl});
  return out;
}

/// Everything of a run that is not in TrainableModel::state().
nlohmann::json notes_of(const TrainResult& result) {
  return {{"curve", curve_json(result.curve)}, {"start_kl", result.start_kl}, {"best_kl", result.best_kl}, {"best_step", result.best_step}};
}

TrainResult result_from(const nlohmann::json& notes) {
  TrainResult result;
  for (const auto& p : notes.at("curve")) result.curve.push_back({p.at(0), p.at(1), p.at(2)});
  result.start_kl = notes.at("start_kl");
  result.best_kl = notes.at("best_kl");
  result.best_step = notes.at("best_step");
  return result;
}

void put_snapshot(TensorMap& map, const TrainableModel::Snapshot& snapshot) {
  for (std::size_t i = 0; i < snapshot.parameters.size(); ++i) map.emplace(fmt::format("best.parameter.{:05}", i), to_host(snapshot.parameters[i]));
  for (std::size_t i = 0; i < snapshot.codes.size(); ++i) map.emplace(fmt::format("best.codes.{:05}", i), to_host(snapshot.codes[i]));
}

TrainableModel::Snapshot get_snapshot(const TensorMap& map) {
  TrainableModel::Snapshot out;
  for (const auto& [name, tensor] : map) {  // names sort in order
    if (name.starts_with("best.parameter.")) out.parameters.push_back(to_torch(tensor));
    if (name.starts_with("best.codes.")) out.codes.push_back(to_torch(tensor));
  }
  return out;
}

}  // namespace

nlohmann::json gate_statistics(TorchModel& model, const torch::Tensor& tokens) {
  torch::NoGradGuard no_grad;
  auto out = nlohmann::json::array();
  model.on_linear = [&](ModuleId id, const torch::Tensor& x, torch::Tensor&) {
    const auto& compensator = model.linear(id).compensator;
    if (!compensator || !compensator->w1.defined()) return;
    const auto z = torch::linear(x, compensator->a.to(x.scalar_type())).to(torch::kFloat32);
    const auto g = compensator->gate(z);
    out.push_back({{"module", id.name()}, {"mean", g.mean().item<double>()}, {"std", g.std().item<double>()},
                   {"min", g.min().item<double>()}, {"max", g.max().item<double>()}});
  };
  model.hidden(tokens);
  model.on_linear = nullptr;
  return out;
}

TorchModel Stages::quantized_model() {
  TorchModel model(reference_, device_, torch::kBFloat16);
  for (std::size_t i = 0; i < quantized().linears.size(); ++i) {
    model.weights().linears[i].weight = quantized().linears[i].dequantize().to(torch::kBFloat16);
  }
  return model;
}

std::vector<CompensatorStart> Stages::starts(const std::vector<CompensatorShape>& shapes, const std::vector<torch::Tensor>& moments,
                                             Whitening whitening) {
  std::vector<CompensatorStart> out;
  for (const auto& shape : shapes) {
    std::vector<torch::Tensor> errors;
    for (const ModuleId id : shape.members) {
      const auto weight = std::visit([](const auto& w) { return to_torch(w); }, reference_.linear(id).weight).to(device_);
      errors.push_back(weight - quantized().linears[static_cast<std::size_t>(id.index)].dequantize());
    }
    const auto& moment = moments[static_cast<std::size_t>(shape.members.front().input_group().index)];
    out.push_back(closed_form_start(shape, errors, moment, whitening));
  }
  return out;
}

std::vector<CompensatorShape> Stages::choose_shapes(const std::vector<torch::Tensor>& moments, nlohmann::json& placement) {
  const Recipe& r = options_.recipe;
  PlacementOptions how{r.placement, 0, r.max_rank, r.gate_hidden, r.gate_rows, r.seed};
  how.budget_bytes = static_cast<std::int64_t>(r.budget * static_cast<double>(budget_base_bytes(reference_, r.scheme)));
  auto sites = placement_sites(reference_.config, r.share_a);
  if (r.placement == Placement::damage) {
    for (auto& site : sites) {
      std::vector<torch::Tensor> errors;
      for (const ModuleId id : site.members) {
        const auto weight = std::visit([](const auto& w) { return to_torch(w); }, reference_.linear(id).weight).to(device_);
        errors.push_back(weight - quantized().linears[static_cast<std::size_t>(id.index)].dequantize());
        site.damage += std::max(0.0, damage().cka[static_cast<std::size_t>(id.index)] - damage().noise_floor);
      }
      const auto& moment = moments[static_cast<std::size_t>(site.members.front().input_group().index)];
      // All singular values: a site's gain is their share in the whole error.
      const auto sigma = whitened_factors(torch::cat(errors, 0), moment, site.in_features, Whitening::exact).singular_values.to(torch::kCPU);
      site.singular_values.assign(sigma.data_ptr<double>(), sigma.data_ptr<double>() + sigma.numel());
    }
  }
  auto shapes = place(sites, how);
  placement = placement_json(shapes, how, module_count(reference_.config), r.share_a);
  return shapes;
}

std::vector<torch::Tensor> Stages::latents() {
  std::vector<torch::Tensor> out;
  const auto& q = quantized();
  if (options_.recipe.tune != Tune::codes) return out;
  for (std::size_t i = 0; i < q.linears.size(); ++i) {
    const auto& linear = q.linears[i];
    const auto weight = q.before_rounding.empty() ? reference_model().linear(ModuleId{static_cast<int>(i)}).weight.to(torch::kFloat32)
                                                  : q.before_rounding[i];
    const std::int64_t in = weight.size(1);
    const auto position = weight / expand_groups(linear.scales, in, linear.scheme) + expand_groups(linear.zeros, in, linear.scheme);
    // Inside the cell of the code it has: what the quantizer decided stands until training moves it.
    out.push_back(torch::minimum(torch::maximum(position, linear.codes - 0.49), linear.codes + 0.49));
  }
  return out;
}

std::vector<CompensatorStart> Stages::best_start(const std::vector<CompensatorShape>& shapes, const std::vector<torch::Tensor>& moments,
                                                 std::string& whitening) {
  std::vector<CompensatorStart> best;
  double best_kl = 0;
  for (const auto& [kind, label] : {std::pair{Whitening::exact, "exact"}, std::pair{Whitening::diagonal, "diagonal"}}) {
    auto candidate = starts(shapes, moments, kind);
    TorchModel model = quantized_model();
    TrainableModel trainable(model, quantized().linears, {}, candidate, Tune::none, options_.recipe.seed);
    trainable.install(true, false);
    const double kl = held_out_kl(model, samples(), states(), options_.recipe.train.sequence_length, kStartTokens);
    log::info("closed form, {} whitening: held-out KL {:.4f}", label, kl);
    if (best.empty() || kl < best_kl) {
      best = std::move(candidate);
      best_kl = kl;
      whitening = label;
    }
  }
  return best;
}

TrainResult Stages::run_training(TorchModel& model, TrainableModel& trainable, const nlohmann::json& key) {
  TrainResult before;
  if (const auto kept = workspace_.load("train", key)) {
    trainable.load_state(kept->tensors);
    before = result_from(nlohmann::json::parse(kept->metadata.at("notes")));
    before.best = get_snapshot(kept->tensors);
    log::info("calibrate: continuing after step {}", trainable.steps_done());
  }
  const auto save = [&](const TrainResult& result) {
    auto tensors = trainable.state();
    put_snapshot(tensors, result.best);
    workspace_.save("train", key, tensors, notes_of(result));
  };
  const bool had_finished = trainable.steps_done() >= options_.recipe.train.steps;
  auto result = timed("calibrate", [&] { return train(model, trainable, samples(), states(), options_.recipe.train, std::move(before), save); });
  if (!had_finished && options_.recipe.train.steps > 0) {
    TrainResult finished = result;
    finished.best = {};  // installed already
    auto tensors = trainable.state();
    workspace_.save("train", key, tensors, notes_of(finished));
  }
  return result;
}

Calibrated Stages::calibrate() {
  const Recipe& r = options_.recipe;
  Calibrated out;
  states();
  quantized();
  std::vector<CompensatorStart> start;
  if (r.budget > 0) {
    const auto tokens = quantizer_tokens();
    drop_reference_model();
    std::vector<torch::Tensor> moments;
    {
      TorchModel model = quantized_model();
      moments = timed("closed form", [&] { return input_moments(model, tokens, 8); });
    }
    out.shapes = choose_shapes(moments, out.placement);
    start = best_start(out.shapes, moments, out.whitening);
  }
  drop_reference_model();
  TorchModel model = quantized_model();
  TrainableModel trainable(model, quantized().linears, latents(), start, r.tune, r.seed);
  drop_reference_model();
  auto training = to_json(r);
  training["input"] = input_key();
  training["calibration"] = sample_key();
  out.train = run_training(model, trainable, training);
  out.weights = trainable.export_weights(reference_);
  if (!start.empty() && r.gate_hidden > 0) {
    const auto& set = samples();
    const std::int64_t rows = std::min<std::int64_t>(4, set.held_out);
    out.gates = gate_statistics(model, model.token_tensor({set.rows(set.train_sequences(), rows), rows, set.length}));
  }
  return out;
}

}  // namespace spear
