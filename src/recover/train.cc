#include "recover/train.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/random.h"
#include "torch/fused_ops.h"

namespace spear {
namespace {

constexpr std::int64_t kLogitRows = 512;  ///< rows of logits alive at a time
constexpr std::int64_t kHeldOutTokens = 24576;
constexpr double kSaveSeconds = 300;

/// Loss summed over tokens, and dL/dhidden of its mean.
struct Loss {
  double sum = 0;
  torch::Tensor gradient;
};

Loss kl_loss(const TorchModel& model, const torch::Tensor& hidden, const torch::Tensor& reference, bool with_gradient) {
  torch::NoGradGuard no_grad;
  const std::int64_t rows = hidden.size(0);
  Loss loss;
  if (with_gradient) loss.gradient = torch::empty_like(hidden);
  for (std::int64_t begin = 0; begin < rows; begin += kLogitRows) {
    const std::int64_t count = std::min(kLogitRows, rows - begin);
    auto student = model.logits(hidden.narrow(0, begin, count));
    const auto teacher = model.logits(reference.narrow(0, begin, count).to(torch::kFloat32));
    loss.sum += kl_rows_with_gradient(student, teacher);
    if (with_gradient) {
      loss.gradient.narrow(0, begin, count).copy_(torch::matmul(student, model.weights().head) / static_cast<double>(rows));
    }
  }
  return loss;
}

/// Training pieces of a fixed length.
class Pieces {
 public:
  Pieces(const TorchModel& model, const CalibrationSet& set, const torch::Tensor& states, std::int64_t first_sequence,
         std::int64_t sequences, std::int64_t length)
      : length_(length), per_sequence_(set.length / length), count_(sequences * per_sequence_) {
    if (per_sequence_ < 1) throw usage_error(fmt::format("training sequences of {} tokens from samples of {}", length, set.length));
    const auto rows = set.rows(first_sequence, sequences);
    tokens_ = model.token_tensor({rows, sequences, set.length}).narrow(1, 0, per_sequence_ * length).reshape({count_, length});
    states_ = states.narrow(0, first_sequence, sequences).narrow(1, 0, per_sequence_ * length).reshape({count_, length, -1});
  }
  std::int64_t count() const { return count_; }
  torch::Tensor tokens(const torch::Tensor& which) const { return tokens_.index_select(0, which.to(tokens_.device())); }
  torch::Tensor states(const torch::Tensor& which) const {
    return states_.index_select(0, which.to(states_.device())).to(tokens_.device()).flatten(0, 1);
  }

 private:
  std::int64_t length_, per_sequence_, count_;
  torch::Tensor tokens_, states_;
};

TrainableModel::Rates rates_at(const TrainOptions& options, std::int64_t step, double start_kl) {
  const auto total = static_cast<double>(options.steps);
  const double warm = std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(options.warmup_steps + 1));
  const double at = static_cast<double>(step) / total;
  const double linear = 1 - at, cosine = 0.5 * (1 + std::cos(M_PI * at));
  // What little a good backbone has lost, a rate for bad ones would first double (docs/algorithm.md).
  const double share = options.full_rate_kl > 0 ? std::min(1.0, start_kl / options.full_rate_kl) : 1.0;
  TrainableModel::Rates rates = options.rates;
  rates.codes *= share * warm * std::max(0.0, 1 - at / options.codes_until);
  for (double& rate : rates.groups) rate *= share * warm * (options.decay == Decay::cosine ? cosine : linear);
  return rates;
}

}  // namespace

torch::Tensor reference_states(TorchModel& reference, const CalibrationSet& set) {
  torch::NoGradGuard no_grad;
  const std::int64_t hidden = reference.config().hidden_size;
  auto states = torch::empty({set.sequences, set.length, hidden}, torch::kBFloat16);
  Progress progress("reference states", set.sequences * set.length);
  const std::int64_t batch = std::max<std::int64_t>(1, 4096 / set.length);
  for (std::int64_t first = 0; first < set.sequences; first += batch) {
    throw_if_interrupted();
    const std::int64_t count = std::min(batch, set.sequences - first);
    const auto h = reference.hidden(reference.token_tensor({set.rows(first, count), count, set.length}));
    states.narrow(0, first, count).copy_(h.view({count, set.length, hidden}));
    progress.update((first + count) * set.length);
  }
  return states;
}

std::vector<std::int64_t> visiting_order(std::int64_t pieces, std::int64_t needed, std::uint64_t seed) {
  if (pieces < 1) throw failed("no pieces to train on", "calibrate");
  std::vector<std::int64_t> order, epoch(static_cast<std::size_t>(pieces));
  Random random(seed, 0x6f72646572);
  while (static_cast<std::int64_t>(order.size()) < needed) {
    std::iota(epoch.begin(), epoch.end(), 0);
    for (std::size_t i = epoch.size(); i > 1; --i) std::swap(epoch[i - 1], epoch[random.below(i)]);
    order.insert(order.end(), epoch.begin(), epoch.end());
  }
  order.resize(static_cast<std::size_t>(needed));
  return order;
}

double held_out_kl(TorchModel& model, const CalibrationSet& set, const torch::Tensor& states, std::int64_t length,
                   std::int64_t max_tokens, std::vector<double>* pieces) {
  torch::NoGradGuard no_grad;
  const Pieces held(model, set, states, set.train_sequences(), set.selection_sequences(), length);
  const std::int64_t count = std::min(held.count(), std::max<std::int64_t>(1, max_tokens / length));
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    throw_if_interrupted();
    const auto which = torch::full({1}, i, torch::kInt64);
    const double piece = kl_loss(model, model.hidden(held.tokens(which)), held.states(which), false).sum;
    if (pieces != nullptr) pieces->push_back(piece / static_cast<double>(length));
    sum += piece;
  }
  return sum / static_cast<double>(count * length);
}

TrainResult train(TorchModel& model, TrainableModel& trainable, const CalibrationSet& set, const torch::Tensor& states,
                  const TrainOptions& options, TrainResult result, const std::function<void(const TrainResult&)>& save) {
  const Pieces pieces(model, set, states, 0, set.train_sequences(), options.sequence_length);
  const std::int64_t batch = std::max<std::int64_t>(1, options.tokens_per_step / options.sequence_length);
  const auto order = visiting_order(pieces.count(), options.steps * batch, options.seed);
  const auto held_out = [&] {
    torch::NoGradGuard no_grad;
    trainable.install(true, true);
    return held_out_kl(model, set, states, options.sequence_length, kHeldOutTokens);
  };
  // Only the second half can win: the rate must fall before a state settles.
  const std::int64_t every = std::max<std::int64_t>(1, options.steps / (2 * std::max<std::int64_t>(1, options.evaluations)));
  const auto is_due = [&](std::int64_t done) {
    return done == 0 || done == options.steps || (2 * done >= options.steps && (options.steps - done) % every == 0);
  };
  Progress progress("calibrate", options.steps);
  double last_save = 0;
  double& loss_sum = result.loss_sum;
  std::int64_t& loss_count = result.loss_count;
  const auto mean_loss = [&] { return loss_count > 0 ? loss_sum / static_cast<double>(loss_count) : 0.0; };
  const auto save_now = [&] {
    last_save = progress.seconds();
    if (save) save(result);
  };
  const auto measure = [&](std::int64_t done) {
    double kl = 0;
    try {
      kl = held_out();
    } catch (const Error&) {  // a signal: the step is kept, its measurement comes first after --resume
      save_now();
      throw;
    }
    if (done == 0) result.start_kl = kl;
    if (done == 0 || kl < result.best_kl) {
      result.best_kl = kl;
      result.best_step = done;
      result.best = trainable.snapshot();
    }
    result.curve.push_back({done, done == 0 ? kl : mean_loss(), kl});
  };
  const std::int64_t first = trainable.steps_done();
  for (std::int64_t step = first;; ++step) {
    const bool measured = !result.curve.empty() && result.curve.back().step == step && result.curve.back().held_out_kl >= 0;
    if (is_due(step) && !measured) {
      measure(step);
      loss_sum = loss_count = 0;
    } else if (step % 10 == 0 && loss_count > 0) {
      result.curve.push_back({step, mean_loss(), -1});
      loss_sum = loss_count = 0;
    }
    if (step >= options.steps) break;
    if (interrupted() || progress.seconds() - last_save > kSaveSeconds) {
      save_now();
      throw_if_interrupted();
    }
    const auto share = static_cast<double>(step) / static_cast<double>(options.steps);
    trainable.install(share >= options.int8_from, share >= options.gates_from);
    const auto which = torch::tensor(std::vector<std::int64_t>(order.begin() + step * batch, order.begin() + (step + 1) * batch));
    const auto hidden = model.hidden(pieces.tokens(which));
    if (!hidden.requires_grad()) {
      log::warn("calibrate: nothing trains (no compensators, --tune none)");
      break;
    }
    const Loss loss = kl_loss(model, hidden.detach(), pieces.states(which), true);
    const double mean = loss.sum / static_cast<double>(hidden.size(0));
    if (!std::isfinite(mean)) {
      throw failed(fmt::format("the loss became {} at step {}", mean, step), "calibrate", "lower the learning rates");
    }
    hidden.backward(loss.gradient);
    trainable.step(rates_at(options, step, result.start_kl));
    loss_sum += mean;
    ++loss_count;
    progress.update(step + 1, fmt::format("KL {:.4f}", mean_loss()));
  }
  if (options.steps > first) result.seconds_per_step = progress.seconds() / static_cast<double>(options.steps - first);
  progress.finish();
  if (result.best_step != options.steps && !result.best.parameters.empty()) trainable.restore(result.best);
  trainable.install(true, true);
  return result;
}

}  // namespace spear
