// Differentiable operations that would otherwise save or move far more than they need. On the CPU each is one pass
// over memory with float32 arithmetic inside; elsewhere they are composed of tensor operations.
#pragma once

#include "torch/libtorch.h"

namespace spear {

/// x: [tokens, features] float32 -> x / sqrt(mean x² + eps) ⊙ gain in `out_type`. Gradients for x and gain.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& gain, double eps, torch::ScalarType out_type);

/// silu(gate) ⊙ up, both [tokens, features] in one type.
torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& up);
/// gelu(gate) ⊙ up by gelu's tanh formula.
torch::Tensor geglu(const torch::Tensor& gate, const torch::Tensor& up);

/// y ⊙ factor with y [tokens, features] in any type and factor [features] float32: one rounding, factor keeps its
/// precision. Gradients for both.
torch::Tensor scale_columns(const torch::Tensor& y, const torch::Tensor& factor);

/// Half-split rotary embedding: x [batch, length, heads, head_dim], cos and sin [length, head_dim / 2] float32
/// -> [batch, heads, length, head_dim] in x's type.
torch::Tensor rotate_heads(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin);

/// Causal softmax attention with grouped queries. query: [batch, heads, length, head_dim]; key, value:
/// [batch, kv_heads, keys, head_dim]; the last query stands at the last key. Scores are multiplied by `scale`; a query
/// sees the last `window` keys up to its own, or all of them if that is 0. -> [batch * length, heads * head_dim].
torch::Tensor causal_attention(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                               double scale, std::int64_t window = 0);

/// Sum over rows of KL(softmax(teacher) ‖ softmax(student)); logits [rows, vocab] float32.
/// The student's logits are overwritten with softmax(student) − softmax(teacher), the gradient of that sum.
double kl_rows_with_gradient(torch::Tensor& student_logits, const torch::Tensor& teacher_logits);

}  // namespace spear
