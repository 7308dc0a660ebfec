// The inner loops of learned rounding: every weight has a latent position on its code grid; the forward pass sees the
// nearest code. One pass over memory per step on the CPU, tensor operations elsewhere.
#pragma once

#include "tensor/w4.h"
#include "torch/libtorch.h"

namespace spear {

/// A linear's codes in training.
struct LatentWeight {
  W4Scheme scheme;
  /// [out, in] float32, in code units: the code is floor(latent + 0.5) in 0..15; or uint8, the codes themselves, where they
  /// do not train.
  torch::Tensor latent;
  torch::Tensor zeros;   ///< [out, groups] float32
  torch::Tensor group_index = {};  ///< as in QuantizedLinear
};

/// weight = (code − zero) · scale, written into `weight` (its own type). scales: [out, groups] float32.
void write_weight(const LatentWeight& latent, const torch::Tensor& scales, torch::Tensor& weight);

/// Signed gradient step: latent −= rate · sign(dL/dweight · scale), then clamped to the cells of the codes 0 and 15.
/// Adam and Lion on the latents are no better (docs/algorithm.md), and this keeps no state. rate: code units.
void step_codes(LatentWeight& latent, const torch::Tensor& scales, const torch::Tensor& weight_gradient, double rate);

/// dL/d log(scale) = Σ over the group of dL/dweight · weight: [out, groups] float32. group_index as in QuantizedLinear.
torch::Tensor log_scale_gradient(const torch::Tensor& weight_gradient, const torch::Tensor& weight, const W4Scheme& scheme,
                                 const torch::Tensor& group_index = {});

/// floor(latent + 0.5) in 0..15: uint8.
torch::Tensor nearest_codes(const torch::Tensor& latent);

}  // namespace spear
