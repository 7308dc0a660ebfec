// Loops over a vocabulary's logits, vectorized for the CPU at hand.
#pragma once

#include <cstdint>

namespace spear {

/// Largest of x [n]; NaN or +infinity anywhere gives NaN. n >= 1.
float largest_logit(const float* x, std::int64_t n);

/// out[i] = exp((x[i] - shift) * scale), 0 where that is below 1e-37; returns the sum. x[i] <= shift.
double exponentials(const float* x, std::int64_t n, float shift, float scale, float* out);

/// Sum of the weights [n] that are at least `floor`.
double mass_from(const float* weights, std::int64_t n, float floor);

}  // namespace spear
