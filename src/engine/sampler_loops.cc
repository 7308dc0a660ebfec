#include "engine/sampler_loops.h"

#include <cmath>
#include <limits>

#include "tensor/vector_math.h"

namespace spear {
namespace {

constexpr int kLanes = 16;
constexpr std::int64_t kBlock = 1024;  // terms of a float32 sum

SPEAR_VECTOR_CLONES void largest_lanes(const float* x, std::int64_t n, float* largest, std::int32_t* bad) {
  for (std::int64_t i = 0; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane];
      largest[lane] = value > largest[lane] ? value : largest[lane];
      bad[lane] |= value <= std::numeric_limits<float>::max() ? 0 : 1;
    }
  }
}

SPEAR_VECTOR_CLONES float exponential_block(const float* x, std::int64_t n, float shift, float scale, float* out) {
  float sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float power = (x[i + lane] - shift) * scale;
      const float value = vector_exp(power);
      out[i + lane] = power < -85.0F ? 0.0F : value;
      sums[lane] += out[i + lane];
    }
  }
  for (; i < n; ++i) {
    const float power = (x[i] - shift) * scale;
    out[i] = power < -85.0F ? 0.0F : vector_exp(power);
    sums[0] += out[i];
  }
  float sum = 0;
  for (const float lane : sums) sum += lane;
  return sum;
}

SPEAR_VECTOR_CLONES float mass_block(const float* weights, std::int64_t n, float floor) {
  float sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float weight = weights[i + lane];
      sums[lane] += weight >= floor ? weight : 0.0F;
    }
  }
  for (; i < n; ++i) sums[0] += weights[i] >= floor ? weights[i] : 0.0F;
  float sum = 0;
  for (const float lane : sums) sum += lane;
  return sum;
}

}  // namespace

float largest_logit(const float* x, std::int64_t n) {
  float lanes[kLanes];
  std::int32_t bad[kLanes] = {};
  for (float& lane : lanes) lane = -INFINITY;
  largest_lanes(x, n, lanes, bad);
  float largest = -INFINITY;
  std::int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    largest = std::max(largest, lanes[lane]);
    any |= bad[lane];
  }
  for (std::int64_t i = n / kLanes * kLanes; i < n; ++i) {
    largest = std::max(largest, x[i]);
    any |= x[i] <= std::numeric_limits<float>::max() ? 0 : 1;
  }
  return any != 0 ? std::numeric_limits<float>::quiet_NaN() : largest;
}

double exponentials(const float* x, std::int64_t n, float shift, float scale, float* out) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; i += kBlock) {
    sum += exponential_block(x + i, std::min(kBlock, n - i), shift, scale, out + i);
  }
  return sum;
}

double mass_from(const float* weights, std::int64_t n, float floor) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; i += kBlock) sum += mass_block(weights + i, std::min(kBlock, n - i), floor);
  return sum;
}

}  // namespace spear
