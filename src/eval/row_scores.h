// Log-likelihood and divergence of one row of logits: the vocabulary loops, vectorized, with the same bits on every
// ISA.
#pragma once

#include <cstdint>
#include <span>

namespace spear {

struct RowScore {
  double log_sum_exp = 0;
  std::int32_t top = 0;  ///< index of the largest logit, the first of equals
};

/// Relative error of the sum below 1e-6. NaN or +inf among the logits gives a log_sum_exp that is not finite.
RowScore score_row(std::span<const float> logits);

struct RowDivergence {
  RowScore reference, model;
  double kl = 0;  ///< KL(reference || model) in nats; may be negative by rounding (about 1e-7)
};

/// Both rows [vocab_size].
RowDivergence compare_rows(std::span<const float> reference, std::span<const float> model);

}  // namespace spear
