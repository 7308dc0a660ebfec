// End-to-end calibration: KL(reference ‖ model) over the full vocabulary, on sampled text.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "recover/sample.h"
#include "recover/trainable.h"

namespace spear {

/// Final normalized hidden states of the reference over a calibration set: [sequences, length, hidden] bfloat16.
torch::Tensor reference_states(TorchModel& reference, const CalibrationSet& set);

enum class Decay { cosine, linear };

struct TrainOptions {
  std::int64_t steps = 0;
  std::int64_t tokens_per_step = 2048;
  std::int64_t sequence_length = 512;  ///< sequences of the set are cut into pieces of this length
  std::int64_t warmup_steps = 10;
  TrainableModel::Rates rates;         ///< peak values
  double full_rate_kl = 0;             ///< if positive, rates are multiplied by min(1, held-out KL at the start / this)
  Decay decay = Decay::cosine;         ///< of everything but codes, whose rate falls linearly
  double int8_from = 0.7;              ///< share of the steps after which factors are trained through their rounding
  double gates_from = 0.0;             ///< share of the steps after which the gates switch on
  double codes_until = 1.0;            ///< share of the steps after which codes stay as they are
  std::int64_t evaluations = 4;        ///< held-out evaluations during the last half (step 0 and the end come on top)
  std::uint64_t seed = 0;
};

struct TrainPoint {
  std::int64_t step = 0;
  double loss = 0;         ///< mean over the steps since the last point, nats per token
  double held_out_kl = -1; ///< -1: not measured here
};

struct TrainResult {
  std::vector<TrainPoint> curve;
  double loss_sum = 0;               ///< over the steps since the last point of the curve
  std::int64_t loss_count = 0;       ///< those steps
  double start_kl = 0, best_kl = 0;  ///< held-out, nats per token
  std::int64_t best_step = 0;
  double seconds_per_step = 0;
  TrainableModel::Snapshot best;  ///< the state of best_step; may be empty when that is the last one
};

/// Mean KL per token of the model's current slots against reference states, over pieces of `length` tokens of the
/// held-out rows that select (at most `max_tokens`). Per-piece means are appended to `pieces` if given, for paired comparisons.
double held_out_kl(TorchModel& model, const CalibrationSet& set, const torch::Tensor& states, std::int64_t length,
                   std::int64_t max_tokens, std::vector<double>* pieces = nullptr);

/// Trains from wherever `trainable` is (its steps_done counts) and leaves the best held-out state installed, rounded as
/// it will be stored. `save` is called every few minutes and after a signal; what it stored makes a run continue exactly.
TrainResult train(TorchModel& model, TrainableModel& trainable, const CalibrationSet& set, const torch::Tensor& states,
                  const TrainOptions& options, TrainResult progress_so_far = {}, const std::function<void(const TrainResult&)>& save = {});

/// Order in which pieces are visited: random permutations one after the other, a function of seed and counts only.
std::vector<std::int64_t> visiting_order(std::int64_t pieces, std::int64_t needed, std::uint64_t seed);

}  // namespace spear
