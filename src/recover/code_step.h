// The inner loops of learned rounding: every weight has a latent position on its code grid; the forward pass sees the
// nearest code. One pass over memory per step on the CPU, tensor operations elsewhere.
#pragma once

#include <torch/torch.h>

#include "tensor/w4.h"

namespace spear {

/// A linear's codes and scales in training. All [out, in] or [out, groups].
struct LatentWeight {
  W4Scheme scheme;
  torch::Tensor latent;         ///< float32, in code units: the code is floor(latent + 0.5) in 0..15
  torch::Tensor moment, second; ///< Adam's moments of the latent; undefined while codes are frozen
  torch::Tensor zeros;          ///< float32
};

struct CodeStep {
  double learning_rate = 0;  ///< code units per step
  double beta1 = 0.9, beta2 = 0.95;
  std::int64_t step = 1;     ///< counted from 1, for the bias corrections
};

/// weight = (code − zero) · scale, written into `weight` (its own type). scales: [out, groups] float32.
void write_weight(const LatentWeight& latent, const torch::Tensor& scales, torch::Tensor& weight);

/// Adam on the latent with the straight-through gradient dL/dlatent = dL/dweight · sign(scale), then clamped to the
/// cells of the codes 0 and 15.
void step_codes(LatentWeight& latent, const torch::Tensor& scales, const torch::Tensor& weight_gradient, const CodeStep& step);

/// dL/d log(scale) = Σ over the group of dL/dweight · weight: [out, groups] float32.
torch::Tensor log_scale_gradient(const torch::Tensor& weight_gradient, const torch::Tensor& weight, const W4Scheme& scheme);

/// floor(latent + 0.5) in 0..15.
torch::Tensor nearest_codes(const torch::Tensor& latent);

}  // namespace spear
