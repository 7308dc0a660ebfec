#include "torch/fused_cpu.h"

#include <cmath>

#include "tensor/elements.h"
#include "tensor/vector_math.h"

namespace spear::fused {
namespace {

#define SPEAR_INLINE inline __attribute__((always_inline))

using elements::load;
using elements::store;

SPEAR_INLINE float sigmoid(float x) { return 1.0F / (1.0F + vector_exp(-x)); }

/// Sixteen partial sums: the order is fixed by the code, not by the vector width.
constexpr int kLanes = 16;

template <class F>
SPEAR_INLINE float lane_sum(std::int64_t n, F&& term) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (; i < n; ++i) lanes[0] += term(i);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

template <class T>
SPEAR_INLINE void rms_norm_forward_impl(std::int64_t rows, std::int64_t n, float eps, const float* x, const float* gain,
                                        T* out, float* inverse_rms) {
  for (std::int64_t row = 0; row < rows; ++row, x += n, out += n) {
    const float mean_square = lane_sum(n, [x](std::int64_t i) { return x[i] * x[i]; }) / static_cast<float>(n);
    const float r = 1.0F / std::sqrt(mean_square + eps);
    inverse_rms[row] = r;
    for (std::int64_t i = 0; i < n; ++i) store(out[i], x[i] * r * gain[i]);
  }
}

template <class T>
SPEAR_INLINE void rms_norm_backward_impl(std::int64_t rows, std::int64_t n, const float* x, const float* gain,
                                         const float* inverse_rms, const T* dy, float* dx, float* dgain) {
  for (std::int64_t row = 0; row < rows; ++row, x += n, dy += n, dx += n) {
    const float r = inverse_rms[row];
    const float dot = lane_sum(n, [=](std::int64_t i) { return load(dy[i]) * gain[i] * x[i]; });
    const float back = dot * r * r * r / static_cast<float>(n);
    for (std::int64_t i = 0; i < n; ++i) dx[i] = load(dy[i]) * gain[i] * r - x[i] * back;
    if (dgain != nullptr) {
      for (std::int64_t i = 0; i < n; ++i) dgain[i] += load(dy[i]) * x[i] * r;
    }
  }
}

template <class T>
SPEAR_INLINE void swiglu_forward_impl(std::int64_t count, const T* gate, const T* up, T* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = load(gate[i]);
    store(out[i], g * sigmoid(g) * load(up[i]));
  }
}

template <class T>
SPEAR_INLINE void swiglu_backward_impl(std::int64_t count, const T* gate, const T* up, const T* dy, T* dgate, T* dup) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = load(gate[i]), d = load(dy[i]), s = sigmoid(g);
    store(dup[i], d * g * s);
    store(dgate[i], d * load(up[i]) * s * (1.0F + g * (1.0F - s)));
  }
}

// gelu(x) = x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x³), which is its tanh formula.
constexpr float kGeluSlope = 1.5957691216057308F, kGeluCubic = 0.044715F;

template <class T>
SPEAR_INLINE void geglu_forward_impl(std::int64_t count, const T* gate, const T* up, T* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = load(gate[i]);
    store(out[i], g * sigmoid(kGeluSlope * g * (1.0F + kGeluCubic * g * g)) * load(up[i]));
  }
}

template <class T>
SPEAR_INLINE void geglu_backward_impl(std::int64_t count, const T* gate, const T* up, const T* dy, T* dgate, T* dup) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = load(gate[i]), d = load(dy[i]), s = sigmoid(kGeluSlope * g * (1.0F + kGeluCubic * g * g));
    const float slope = kGeluSlope * (1.0F + 3.0F * kGeluCubic * g * g);
    store(dup[i], d * g * s);
    store(dgate[i], d * load(up[i]) * s * (1.0F + g * slope * (1.0F - s)));
  }
}

template <class T>
SPEAR_INLINE void scale_forward_impl(std::int64_t rows, std::int64_t n, const T* y, const float* factor, T* out) {
  for (std::int64_t row = 0; row < rows; ++row, y += n, out += n) {
    for (std::int64_t i = 0; i < n; ++i) store(out[i], load(y[i]) * factor[i]);
  }
}

template <class T>
SPEAR_INLINE void scale_backward_impl(std::int64_t rows, std::int64_t n, const T* y, const float* factor, const T* dout, T* dy,
                                      float* dfactor) {
  for (std::int64_t row = 0; row < rows; ++row, y += n, dout += n, dy += n) {
    for (std::int64_t i = 0; i < n; ++i) {
      const float d = load(dout[i]);
      dfactor[i] += d * load(y[i]);
      store(dy[i], d * factor[i]);
    }
  }
}

template <class T>
SPEAR_INLINE void rotate_impl(std::int64_t length, std::int64_t heads, std::int64_t dim, const float* cos, const float* sin,
                              bool inverse, const T* x, T* out) {
  const std::int64_t half = dim / 2;
  const float sign = inverse ? -1.0F : 1.0F;
  for (std::int64_t position = 0; position < length; ++position) {
    const float* c = cos + position * half;
    const float* s = sin + position * half;
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t by_position = (position * heads + head) * dim;
      const std::int64_t by_head = (head * length + position) * dim;
      const T* from = x + (inverse ? by_head : by_position);
      T* to = out + (inverse ? by_position : by_head);
      for (std::int64_t i = 0; i < half; ++i) {
        const float a = load(from[i]), b = load(from[i + half]);
        store(to[i], a * c[i] - sign * b * s[i]);
        store(to[i + half], b * c[i] + sign * a * s[i]);
      }
    }
  }
}

}  // namespace

// target_clones cannot be put on templates: one pair of plain functions per kernel.
#define SPEAR_INSTANTIATE(NAME, PARAMETERS, ARGUMENTS)                                                          \
  namespace {                                                                                                   \
  SPEAR_VECTOR_CLONES void NAME##_f32 PARAMETERS(float) { NAME##_impl<float> ARGUMENTS; }                        \
  SPEAR_VECTOR_CLONES void NAME##_bf16 PARAMETERS(std::uint16_t) { NAME##_impl<std::uint16_t> ARGUMENTS; }       \
  }                                                                                                             \
  template <>                                                                                                   \
  void NAME<float> PARAMETERS(float) { NAME##_f32 ARGUMENTS; }                                                   \
  template <>                                                                                                   \
  void NAME<std::uint16_t> PARAMETERS(std::uint16_t) { NAME##_bf16 ARGUMENTS; }

#define FORWARD_NORM(T) (std::int64_t rows, std::int64_t n, float eps, const float* x, const float* gain, T* out, float* inverse_rms)
SPEAR_INSTANTIATE(rms_norm_forward, FORWARD_NORM, (rows, n, eps, x, gain, out, inverse_rms))

#define BACKWARD_NORM(T) (std::int64_t rows, std::int64_t n, const float* x, const float* gain, const float* inverse_rms, const T* dy, float* dx, float* dgain)
SPEAR_INSTANTIATE(rms_norm_backward, BACKWARD_NORM, (rows, n, x, gain, inverse_rms, dy, dx, dgain))

#define FORWARD_GATED(T) (std::int64_t count, const T* gate, const T* up, T* out)
SPEAR_INSTANTIATE(swiglu_forward, FORWARD_GATED, (count, gate, up, out))

#define BACKWARD_GATED(T) (std::int64_t count, const T* gate, const T* up, const T* dy, T* dgate, T* dup)
SPEAR_INSTANTIATE(swiglu_backward, BACKWARD_GATED, (count, gate, up, dy, dgate, dup))

SPEAR_INSTANTIATE(geglu_forward, FORWARD_GATED, (count, gate, up, out))
SPEAR_INSTANTIATE(geglu_backward, BACKWARD_GATED, (count, gate, up, dy, dgate, dup))

#define FORWARD_SCALE(T) (std::int64_t rows, std::int64_t n, const T* y, const float* factor, T* out)
SPEAR_INSTANTIATE(scale_forward, FORWARD_SCALE, (rows, n, y, factor, out))

#define BACKWARD_SCALE(T) (std::int64_t rows, std::int64_t n, const T* y, const float* factor, const T* dout, T* dy, float* dfactor)
SPEAR_INSTANTIATE(scale_backward, BACKWARD_SCALE, (rows, n, y, factor, dout, dy, dfactor))

#define ROTATE(T) (std::int64_t length, std::int64_t heads, std::int64_t dim, const float* cos, const float* sin, bool inverse, const T* x, T* out)
SPEAR_INSTANTIATE(rotate, ROTATE, (length, heads, dim, cos, sin, inverse, x, out))

SPEAR_VECTOR_CLONES double kl_row(std::int64_t vocab, float* student, const float* teacher) {
  float max_s = student[0], max_t = teacher[0];
  for (std::int64_t i = 0; i < vocab; ++i) {
    max_s = student[i] > max_s ? student[i] : max_s;
    max_t = teacher[i] > max_t ? teacher[i] : max_t;
  }
  const float sum_s = lane_sum(vocab, [=](std::int64_t i) { return vector_exp(student[i] - max_s); });
  const float sum_t = lane_sum(vocab, [=](std::int64_t i) { return vector_exp(teacher[i] - max_t); });
  const float lse_s = max_s + std::log(sum_s), lse_t = max_t + std::log(sum_t);
  const float kl = lane_sum(vocab, [=](std::int64_t i) {
    const float log_s = student[i] - lse_s, log_t = teacher[i] - lse_t;
    const float p_t = vector_exp(log_t);
    student[i] = vector_exp(log_s) - p_t;
    return p_t * (log_t - log_s);
  });
  return kl;
}

}  // namespace spear::fused
