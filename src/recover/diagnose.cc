#include "recover/diagnose.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/interrupt.h"
#include "base/progress.h"
#include "eval/statistics.h"
#include "torch/fused_ops.h"

namespace spear {
namespace {

/// Feature form of n(n − 3) HSIC₁ from centred x and y (reference/algorithms: O(d²) memory).
double hsic(const torch::Tensor& x, const torch::Tensor& y) {
  const auto n = static_cast<double>(x.size(0));
  const auto xx = x.square().sum(1), yy = y.square().sum(1);
  const double cross = torch::matmul(x.t(), y).square().sum().item<double>();
  return cross - n / (n - 2) * (xx * yy).sum().item<double>() +
         xx.sum().item<double>() * yy.sum().item<double>() / ((n - 1) * (n - 2));
}

/// Without the first token of every sequence: attention sinks are outliers that hide all else.
torch::Tensor without_first(const torch::Tensor& hidden, std::int64_t length) {
  return hidden.view({-1, length, hidden.size(-1)}).narrow(1, 1, length - 1).flatten(0, 1);
}

/// The final states of one network with the entries of every layer kept, so that a changed module costs a suffix only.
class PrefixCache {
 public:
  PrefixCache(TorchModel& model, torch::Tensor tokens) : model_(model), tokens_(std::move(tokens)) {
    const std::int64_t layers = model.config().num_hidden_layers;
    entries_.push_back(model.stream_before(tokens_, 0));
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      entries_.push_back(model.advance(entries_.back(), layer, layer + 1, tokens_));
    }
  }
  torch::Tensor final_state() const { return entries_.back().normed.to(torch::kFloat32); }
  /// Final state with another weight in one slot.
  torch::Tensor with_weight(ModuleId id, const torch::Tensor& weight) {
    const auto kept = std::exchange(model_.linear(id).weight, weight);
    const auto end = model_.config().num_hidden_layers;
    auto out = model_.advance(entries_[static_cast<std::size_t>(id.layer())], id.layer(), end, tokens_).normed.to(torch::kFloat32);
    model_.linear(id).weight = kept;
    return out;
  }

 private:
  TorchModel& model_;
  torch::Tensor tokens_;
  std::vector<Stream<TorchOps>> entries_;
};

/// Compares final states with the reference's.
class Comparison {
 public:
  Comparison(const TorchModel& model, const torch::Tensor& reference, const DiagnoseOptions& options)
      : model_(model), options_(options), reference_(without_first(reference, options.length).to(torch::kFloat64)) {
    reference_ = reference_ - reference_.mean(0, true);
    self_ = hsic(reference_, reference_);
    kl_rows_ = std::min(options.kl_tokens, reference.size(0));
    if (options.delta_kl) reference_logits_ = model.logits(reference.narrow(0, 0, kl_rows_));
  }
  double damage(const torch::Tensor& hidden) const {
    auto y = without_first(hidden, options_.length).to(torch::kFloat64);
    y = y - y.mean(0, true);
    return 1.0 - hsic(reference_, y) / std::sqrt(self_ * hsic(y, y));
  }
  double kl(const torch::Tensor& hidden) const {
    double sum = 0;
    constexpr std::int64_t kRows = 512;
    for (std::int64_t begin = 0; begin < kl_rows_; begin += kRows) {
      const std::int64_t count = std::min(kRows, kl_rows_ - begin);
      auto logits = model_.logits(hidden.narrow(0, begin, count));
      sum += kl_rows_with_gradient(logits, reference_logits_.narrow(0, begin, count));
    }
    return sum / static_cast<double>(kl_rows_);
  }

 private:
  const TorchModel& model_;
  DiagnoseOptions options_;
  torch::Tensor reference_, reference_logits_;
  double self_ = 0;
  std::int64_t kl_rows_ = 0;
};

torch::Tensor weight_of(const QuantizedLinear& quantized, const TorchModel& model) {
  return quantized.dequantize().to(model.compute_type());
}

void restore_one(TorchModel& model, const std::vector<QuantizedLinear>& quantized, const torch::Tensor& tokens,
                 const Comparison& compare, const DiagnoseOptions& options, Damage& out) {
  std::vector<torch::Tensor> reference;
  for (std::size_t i = 0; i < quantized.size(); ++i) {
    auto& weight = model.linear(ModuleId{static_cast<int>(i)}).weight;
    reference.push_back(std::exchange(weight, weight_of(quantized[i], model)));
  }
  PrefixCache all_quantized(model, tokens);
  const double damage = compare.damage(all_quantized.final_state());
  const double kl = options.delta_kl ? compare.kl(all_quantized.final_state()) : 0;
  Progress progress("diagnose: restore one", static_cast<std::int64_t>(quantized.size()));
  for (std::size_t i = 0; i < quantized.size(); ++i) {
    throw_if_interrupted();
    const auto hidden = all_quantized.with_weight(ModuleId{static_cast<int>(i)}, reference[i]);
    out.restore_cka.push_back(damage - compare.damage(hidden));
    if (options.delta_kl) out.restore_kl.push_back(kl - compare.kl(hidden));
    progress.update(static_cast<std::int64_t>(i) + 1);
  }
  for (std::size_t i = 0; i < reference.size(); ++i) model.linear(ModuleId{static_cast<int>(i)}).weight = reference[i];
}

/// ½ E[⟨∂NLL/∂y, ΔW x⟩²] per token, with the sampled tokens as labels: they are draws from the model itself.
std::vector<double> fisher_damage(TorchModel& model, const std::vector<QuantizedLinear>& quantized, const torch::Tensor& tokens) {
  std::vector<double> sums(quantized.size(), 0.0);
  torch::AutoGradMode with_grad(true);
  // Gradients flow along the residual stream from the embedding; weights stay leaves without gradients.
  for (std::int64_t sequence = 0; sequence < tokens.size(0); ++sequence) {
    throw_if_interrupted();
    model.on_linear = [&](ModuleId id, const torch::Tensor& x, torch::Tensor& y) {
      const auto index = static_cast<std::size_t>(id.index);
      if (!y.requires_grad()) y.requires_grad_(true);
      torch::Tensor change;
      {  // dequantized for every sequence: all differences at once are as large as the model
        torch::NoGradGuard no_grad;
        change = torch::linear(x, weight_of(quantized[index], model) - model.linear(id).weight).to(torch::kFloat32);
      }
      y.register_hook([&sums, index, change](const torch::Tensor& gradient) {
        sums[index] += (gradient.to(torch::kFloat32) * change).sum(1).square().sum(torch::kFloat64).item<double>();
      });
    };
    const auto row = tokens.narrow(0, sequence, 1);
    const auto hidden = model.hidden(row);
    model.on_linear = nullptr;
    const auto predicted = model.logits(hidden.narrow(0, 0, row.size(1) - 1));
    const auto labels = row.flatten().narrow(0, 1, row.size(1) - 1);
    torch::nll_loss(torch::log_softmax(predicted, -1), labels, {}, at::Reduction::Sum).backward();
  }
  for (double& sum : sums) sum /= 2.0 * static_cast<double>(tokens.numel());
  return sums;
}

nlohmann::json correlations(const Damage& damage) {
  nlohmann::json out = nlohmann::json::object();
  const std::pair<const char*, const std::vector<double>*> others[] = {{"delta_kl", &damage.delta_kl},
                                                                       {"restore_cka", &damage.restore_cka},
                                                                       {"restore_kl", &damage.restore_kl},
                                                                       {"fisher", &damage.fisher}};
  for (const auto& [name, values] : others) {
    if (!values->empty()) out[std::string("cka_") + name] = spearman(damage.cka, *values);
  }
  if (!damage.delta_kl.empty() && !damage.fisher.empty()) out["delta_kl_fisher"] = spearman(damage.delta_kl, damage.fisher);
  return out;
}

}  // namespace

double debiased_cka(const torch::Tensor& x, const torch::Tensor& y) {
  const auto centred = [](const torch::Tensor& t) {
    const auto d = t.to(torch::kFloat64);
    return d - d.mean(0, true);
  };
  const auto a = centred(x), b = centred(y);
  return hsic(a, b) / std::sqrt(hsic(a, a) * hsic(b, b));
}

Spread damage_spread(const std::vector<double>& damage, double noise_floor) {
  double total = 0;
  for (const double d : damage) total += std::max(0.0, d - noise_floor);
  Spread out;
  if (total <= 0 || damage.size() < 2) return out;
  for (const double d : damage) {
    const double p = std::max(0.0, d - noise_floor) / total;
    if (p > 0) out.entropy -= p * std::log(p);
  }
  out.normalized_entropy = out.entropy / std::log(static_cast<double>(damage.size()));
  out.effective_modules = std::exp(out.entropy);
  return out;
}

Damage diagnose(TorchModel& model, const std::vector<QuantizedLinear>& quantized, const torch::Tensor& tokens,
                const DiagnoseOptions& options) {
  Damage out;
  out.fisher = fisher_damage(model, quantized, tokens);
  torch::NoGradGuard no_grad;
  PrefixCache prefix(model, tokens);
  const Comparison compare(model, prefix.final_state(), options);
  // Rounding noise of the arithmetic itself: the same weights, each sequence computed by itself.
  std::vector<torch::Tensor> alone;
  for (std::int64_t i = 0; i < tokens.size(0); ++i) alone.push_back(model.hidden(tokens.narrow(0, i, 1)));
  out.noise_floor = std::max(0.0, compare.damage(torch::cat(alone)));
  Progress progress("diagnose: quantize one", static_cast<std::int64_t>(quantized.size()));
  for (std::size_t i = 0; i < quantized.size(); ++i) {
    throw_if_interrupted();
    const auto hidden = prefix.with_weight(ModuleId{static_cast<int>(i)}, weight_of(quantized[i], model));
    out.cka.push_back(std::max(0.0, compare.damage(hidden)));
    if (options.delta_kl) out.delta_kl.push_back(compare.kl(hidden));
    progress.update(static_cast<std::int64_t>(i) + 1);
  }
  progress.finish();
  if (options.restore_one) restore_one(model, quantized, tokens, compare, options, out);
  return out;
}

nlohmann::json to_json(const Damage& damage) {
  const Spread spread = damage_spread(damage.cka, damage.noise_floor);
  nlohmann::json out = {{"metric", "1 - debiased linear CKA of the final hidden state, this module alone quantized"},
                        {"damage", damage.cka},
                        {"fisher", damage.fisher},
                        {"noise_floor", damage.noise_floor},
                        {"entropy", spread.entropy},
                        {"normalized_entropy", spread.normalized_entropy},
                        {"n_eff", spread.effective_modules},
                        {"spearman", correlations(damage)}};
  if (!damage.delta_kl.empty()) out["delta_kl"] = damage.delta_kl;
  if (!damage.restore_cka.empty()) out["restore"] = damage.restore_cka;
  if (!damage.restore_kl.empty()) out["restore_kl"] = damage.restore_kl;
  return out;
}

std::string damage_table(const Damage& damage, std::size_t rows) {
  std::vector<std::size_t> order(damage.cka.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return damage.cka[a] > damage.cka[b]; });
  const Spread spread = damage_spread(damage.cka, damage.noise_floor);
  std::string out = fmt::format("{:<36} {:>11} {:>11} {:>11} {:>11}\n", "module", "1 - CKA", "delta KL", "restore", "Fisher");
  const auto cell = [](const std::vector<double>& values, std::size_t i) {
    return values.empty() ? std::string("-") : fmt::format("{:.3e}", values[i]);
  };
  for (std::size_t i = 0; i < std::min(rows, order.size()); ++i) {
    const std::size_t at = order[i];
    out += fmt::format("{:<36} {:>11} {:>11} {:>11} {:>11}\n", ModuleId{static_cast<int>(at)}.name(), cell(damage.cka, at),
                       cell(damage.delta_kl, at), cell(damage.restore_cka, at), cell(damage.fisher, at));
  }
  return out + fmt::format("entropy {:.3f} of {:.3f} (ln {}), N_eff {:.1f}, noise floor {:.1e}\n", spread.entropy,
                           std::log(static_cast<double>(order.size())), order.size(), spread.effective_modules, damage.noise_floor);
}

}  // namespace spear
