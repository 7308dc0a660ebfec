#include "engine/sampler_loops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/vector_math.h"

namespace spear {
namespace {

constexpr int kLanes = 16;
constexpr std::int64_t kBlock = 1024;  // terms of a float32 sum

// GCC does not see maxima and masks in loops over lanes; vectors say it outright, for every clone.
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = std::int32_t __attribute__((vector_size(4 * kLanes)));

struct LargestLanes {
  float largest[kLanes];
  std::int32_t bad[kLanes];  // not zero where NaN or +infinity was seen
};

SPEAR_VECTOR_CLONES void largest_lanes(const float* x, std::int64_t n, LargestLanes& out) {
  Floats largest = Floats{} - INFINITY;
  Ints bad = {};
  for (std::int64_t i = 0; i + kLanes <= n; i += kLanes) {
    Floats value;
    std::memcpy(&value, x + i, sizeof value);
    largest = value > largest ? value : largest;
    bad |= ~(value <= Floats{} + std::numeric_limits<float>::max());
  }
  std::memcpy(out.largest, &largest, sizeof largest);
  std::memcpy(out.bad, &bad, sizeof bad);
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
  Floats sums = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Floats weight;
    std::memcpy(&weight, weights + i, sizeof weight);
    sums += weight >= Floats{} + floor ? weight : Floats{};
  }
  float sum = 0;
  for (; i < n; ++i) sum += weights[i] >= floor ? weights[i] : 0.0F;
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

}  // namespace

float largest_logit(const float* x, std::int64_t n) {
  LargestLanes lanes;
  largest_lanes(x, n, lanes);
  float largest = -INFINITY;
  std::int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    largest = std::max(largest, lanes.largest[lane]);
    any |= lanes.bad[lane];
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
