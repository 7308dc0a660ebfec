// The calibration stage: placement, closed-form start, training, export.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "recover/principal_factors.h"
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
  return {{"curve", curve_json(result.curve)}, {"loss_sum", result.loss_sum}, {"loss_count", result.loss_count}, {"start_kl", result.start_kl}, {"best_kl", result.best_kl}, {"best_step", result.best_step}};
}

TrainResult result_from(const nlohmann::json& notes) {
  TrainResult result;
  for (const auto& p : notes.at("curve")) result.curve.push_back({p.at(0), p.at(1), p.at(2)});
  result.loss_sum = notes.value("loss_sum", 0.0);
  result.loss_count = notes.value("loss_count", std::int64_t{0});
  result.start_kl = notes.at("start_kl");
  result.best_kl = notes.at("best_kl");
  result.best_step = notes.at("best_step");
  return result;
}

void put_snapshot(TensorMap& map, const TrainableModel::Snapshot& snapshot) {
  for (std::size_t i = 0; i < snapshot.parameters.size(); ++i) map.emplace(fmt::format("best.parameter.{:05}", i), to_host(snapshot.parameters[i]));
  for (std::size_t i = 0; i < snapshot.codes.size(); ++i) map.emplace(fmt::format("best.codes.{:05}", i), bytes_to_host(snapshot.codes[i]));
}

TrainableModel::Snapshot get_snapshot(const TensorMap& map) {
  TrainableModel::Snapshot out;
  for (const auto& [name, tensor] : map) {  // names sort in order
    if (name.starts_with("best.parameter.")) out.parameters.push_back(to_torch(tensor));
    if (name.starts_with("best.codes.")) out.codes.push_back(bytes_to_torch(tensor));
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

std::vector<CompensatorShape> Stages::choose_shapes(const ModelQuantization& measured, nlohmann::json& placement,
                                                    const std::vector<double>& shares) {
  const Recipe& r = options_.recipe;
  PlacementOptions how{r.placement, 0, r.max_rank, r.gate_hidden, r.gate_rows, r.seed, r.latency};
  auto all = sites();
  const auto budget = static_cast<std::int64_t>(r.budget * static_cast<double>(budget_base()));
  if (r.placement != Placement::uniform && r.placement != Placement::random) {
    const Damage& d = damage();
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].singular_values = measured.singular_values.at(i);
      all[i].energy = measured.energies.at(i);
      for (const ModuleId id : all[i].members) {
        const auto index = static_cast<std::size_t>(id.index);
        all[i].damage += r.placement == Placement::damage ? std::max(0.0, d.cka[index] - d.noise_floor) : d.fisher[index];
      }
      if (!shares.empty()) all[i].damage *= shares[i];
    }
  }
  auto shapes = place_within_file(all, how, budget);
  const auto json = [&](const auto& placed) { return placement_json(placed, how, module_count(reference_.config), r.share_a); };
  placement = json(shapes);
  if (r.latency) {
    how.latency.reset();
    const auto without = place_within_file(all, how, budget);
    placement["added_us"] = placed_us(all, shapes, *r.latency);
    placement["without_latency"] = {{"ranks", json(without).at("ranks")}, {"added_us", placed_us(all, without, *r.latency)}};
  }
  return shapes;
}

std::vector<torch::Tensor> Stages::latents(const Start& start) const {
  std::vector<torch::Tensor> out;
  if (options_.recipe.tune != Tune::codes) return out;
  const double margin = options_.recipe.code_margin;
  for (std::size_t i = 0; i < start.linears.size(); ++i) {
    const auto& linear = start.linears[i];
    const auto weight = !start.targets.empty()
                            ? start.targets[i]
                            : to_torch(parent().linear(ModuleId{static_cast<int>(i)}).weight).to(device_);
    const std::int64_t in = weight.size(1);
    const auto position = weight / expand_groups(linear.scales, in, linear.scheme) + expand_groups(linear.zeros, in, linear.scheme);
    // Inside the cell of the code it has: what the quantizer decided stands until training moves it.
    out.push_back(torch::minimum(torch::maximum(position, linear.codes - margin), linear.codes + margin));
  }
  return out;
}

/// Ranks by site of shapes placed on them.
static std::vector<std::int64_t> ranks_of(const std::vector<PlacementSite>& sites, const std::vector<CompensatorShape>& shapes) {
  std::vector<std::int64_t> ranks(sites.size(), 0);
  for (std::size_t i = 0; i < sites.size(); ++i) {
    for (const auto& shape : shapes) {
      if (shape.members.front() == sites[i].members.front()) ranks[i] = shape.rank;
    }
  }
  return ranks;
}

static std::vector<CompensatorStart> starts_of(const std::vector<PlacementSite>& sites, const std::vector<CompensatorShape>& shapes,
                                        const ModelQuantization& q) {
  std::vector<CompensatorStart> out;
  for (const auto& shape : shapes) {
    for (std::size_t i = 0; i < sites.size(); ++i) {
      if (shape.members.front() == sites[i].members.front()) out.push_back(start_from(shape, q.factors[i]));
    }
  }
  return out;
}

/// Linears that nothing moves: factors of a low rank are the leading ones of a high rank, so one pass measures the
/// spectrum for the placement and fits the compensators; once with each whitening, and held-out KL decides.
Stages::Start Stages::behind_given_linears(Calibrated& out) {
  const std::vector<std::int64_t> wide(sites().size(), options_.recipe.max_rank);
  Start best{quantized().linears, {}, {}};
  double best_kl = 0;
  for (const auto& [whitening, label] : {std::pair{Whitening::exact, "exact"}, std::pair{Whitening::diagonal, "diagonal"}}) {
    const auto fitted = run_quantizer("closed form", wide, whitening);
    if (out.shapes.empty()) out.shapes = choose_shapes(fitted, out.placement);
    auto candidate = starts_of(sites(), out.shapes, fitted);
    drop_model();
    TorchModel model(student_base(), device_, compute_, Linears::empty);
    TrainableModel trainable(model, best.linears, {}, candidate, Tune::none, options_.recipe.seed);
    trainable.install(true, false);
    const double kl = held_out_kl(model, samples(), states(), options_.recipe.train.sequence_length, kStartTokens);
    log::info("closed form, {} whitening: held-out KL {:.4f}", label, kl);
    if (!best.compensators.empty() && kl >= best_kl) continue;
    best.compensators = std::move(candidate);
    best_kl = kl;
    out.whitening = label;
  }
  return best;
}

Stages::Start Stages::trained_wide(Calibrated& out) {
  const Recipe& r = options_.recipe;
  const bool chain = !backbone_ && quantize_options(r).quantizer == Quantizer::gptq;
  const auto wide = run_quantizer(chain ? "quantize behind compensators" : "closed form",
                                  std::vector<std::int64_t>(sites().size(), r.wide_rank), Whitening::exact);
  Start start{chain ? wide.linears : quantized().linears, chain ? wide.targets : std::vector<torch::Tensor>{}, {}};
  std::vector<CompensatorShape> everywhere;
  std::vector<CompensatorSite> where;
  for (const auto& site : sites()) {
    everywhere.push_back({site.members, r.wide_rank, r.gate_rows, 0});
    where.push_back({site.members, r.wide_rank, r.gate_rows});
  }
  drop_model();
  TorchModel model(student_base(), device_, compute_, Linears::empty);
  TrainableModel trainable(model, start.linears, {}, starts_of(sites(), everywhere, wide), Tune::none, r.seed);
  TrainOptions how = r.train;
  how.steps = r.wide_steps;
  how.evaluations = 1;
  timed("train wide", [&] { return train(model, trainable, samples(), states(), how).best_kl; });
  const auto& set = samples();
  const std::int64_t rows = std::min<std::int64_t>(8, set.train_sequences());
  const auto learned = principal_factors(model, where, model.token_tensor({set.rows(0, rows), rows, set.length}));
  std::vector<double> shares;
  for (std::size_t i = 0; i < where.size(); ++i) {
    shares.push_back(learned.energies[i] / std::max(1e-30, wide.energies[i]));
  }
  out.shapes = choose_shapes(learned, out.placement, shares);
  out.whitening = "trained";
  start.compensators = starts_of(sites(), out.shapes, learned);
  return start;
}

Stages::Start Stages::closed_form(Calibrated& out) {
  if (options_.recipe.budget <= 0) return {quantized().linears, quantized().targets, {}};
  if (options_.recipe.placement == Placement::trained) return trained_wide(out);
  if (backbone_ || quantize_options(options_.recipe).quantizer != Quantizer::gptq) return behind_given_linears(out);
  out.shapes = choose_shapes(quantized(), out.placement);
  out.whitening = "exact";
  auto chain = run_quantizer("quantize behind compensators", ranks_of(sites(), out.shapes), Whitening::exact);
  auto compensators = starts_of(sites(), out.shapes, chain);
  return {std::move(chain.linears), std::move(chain.targets), std::move(compensators)};
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
  Start start = closed_form(out);
  drop_model();
  TorchModel model(student_base(), device_, compute_, Linears::empty);
  TrainableModel trainable(model, start.linears, latents(start), start.compensators, r.tune, r.seed);
  auto training = to_json(r);
  training["input"] = input_key();
  training["calibration"] = sample_key(sample_options());
  training["quantizer"] = quantize_key();
  out.train = run_training(model, trainable, training);
  out.weights = trainable.export_weights(student_base());
  if (!start.compensators.empty() && r.gate_hidden > 0) {
    const auto& set = samples();
    const std::int64_t rows = std::min<std::int64_t>(4, set.held_out);
    out.gates = gate_statistics(model, model.token_tensor({set.rows(set.train_sequences(), rows), rows, set.length}));
  }
  return out;
}

}  // namespace spear
