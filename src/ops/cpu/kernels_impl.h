// Text of every instruction set's kernels; included once by each kernels_<isa>.cc, which then builds its table.
// No function template or inline function of another header is called here: the linker could keep this unit's copy
// of it, with this unit's instructions, for the whole program.
#pragma once

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

namespace spear {
namespace {

constexpr std::int64_t kPanelWidth = 2 * kLanes;
static_assert(kPanelWidth <= kMaxPanelWidth);

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class Element, class Load>
void read_elements(const Element* source, std::int64_t n, float scale, Load load_vector, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load_vector(source + i) * scale);
  if (i == n) return;
  Element padded[kLanes] = {};
  for (std::int64_t j = i; j < n; ++j) padded[j - i] = source[j];
  const Vec last = load_vector(padded) * scale;
  for (std::int64_t j = i; j < n; ++j) out[j] = last[j - i];
}

void read_w4(const WeightView& weight, std::int64_t row, std::int64_t begin, std::int64_t end, float* out) {
  const auto* words = static_cast<const std::uint32_t*>(weight.data) + row * (weight.row_bytes / 4);
  while (begin < end) {
    const std::int64_t group = weight.group_size == 0 ? 0 : begin / weight.group_size;
    const std::int64_t group_end = weight.group_size == 0 ? end : smaller(end, (group + 1) * weight.group_size);
    const float scale = weight.scales[row * weight.groups + group];
    const int zero = weight.zeros == nullptr ? 8 : weight.zeros[row * weight.groups + group];
    const std::int64_t whole_words = (group_end - begin) / 8;
    decode_w4(words + begin / 8, whole_words, scale, zero, out);
    const std::int64_t done = begin + 8 * whole_words;
    if (done < group_end) {
      float last[8];
      decode_w4(words + done / 8, 1, scale, zero, last);
      for (std::int64_t col = done; col < group_end; ++col) out[col - begin] = last[col - done];
    }
    out += group_end - begin;
    begin = group_end;
  }
}

void read_row(const WeightView& weight, std::int64_t row, std::int64_t begin, std::int64_t end, float* out) {
  const auto* bytes = static_cast<const unsigned char*>(weight.data) + row * weight.row_bytes;
  switch (weight.kind) {
    case WeightKind::f32:
      std::memcpy(out, bytes + 4 * begin, static_cast<std::size_t>(4 * (end - begin)));
      break;
    case WeightKind::f16:
      read_elements(reinterpret_cast<const std::uint16_t*>(bytes) + begin, end - begin, 1.0F, load_f16, out);
      break;
    case WeightKind::bf16:
      read_elements(reinterpret_cast<const std::uint16_t*>(bytes) + begin, end - begin, 1.0F, load_bf16, out);
      break;
    case WeightKind::i8:
      read_elements(reinterpret_cast<const std::int8_t*>(bytes) + begin, end - begin,
                    weight.scales == nullptr ? 1.0F : weight.scales[row], load_i8, out);
      break;
    case WeightKind::w4:
      read_w4(weight, row, begin, end, out);
      break;
    case WeightKind::custom:
      weight.read(weight, row, begin, end, out);
      break;
  }
}

/// One weight row against kRows activations; kSteps vectors per activation in flight hide the latency of the FMA.
template <int kRows, int kSteps>
void dot_rows(const float* w, const float* x, std::int64_t ldx, std::int64_t k, float* y, std::int64_t ldy,
              bool accumulate) {
  Vec sums[kRows][kSteps] = {};
  std::int64_t i = 0;
  for (; i + kSteps * kLanes <= k; i += kSteps * kLanes) {
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; ++s) {
      const Vec weight = load(w + i + s * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r][s] += weight * load(x + r * ldx + i + s * kLanes);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    Vec total = sums[r][0];
    for (int s = 1; s < kSteps; ++s) total += sums[r][s];
    float sum = sum_lanes(total);
    for (std::int64_t j = i; j < k; ++j) sum += w[j] * x[r * ldx + j];
    y[r * ldy] = accumulate ? y[r * ldy] + sum : sum;
  }
}

void dots(const float* w, const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k, float* y, std::int64_t ldy,
          bool accumulate) {
  std::int64_t i = 0;
  for (; i + 4 <= m; i += 4) dot_rows<4, 2>(w, x + i * ldx, ldx, k, y + i * ldy, ldy, accumulate);
  for (; i < m; ++i) dot_rows<1, 4>(w, x + i * ldx, ldx, k, y + i * ldy, ldy, accumulate);
}

void pack_panel(const float* rows, std::int64_t ldr, std::int64_t n, std::int64_t k, float* panel) {
  for (std::int64_t j = 0; j < k; ++j) {
    float* column = panel + j * kPanelWidth;
    for (std::int64_t i = 0; i < n; ++i) column[i] = rows[i * ldr + j];
    for (std::int64_t i = n; i < kPanelWidth; ++i) column[i] = 0;
  }
}

/// kRows x kPanelWidth outputs held in registers over all of k.
template <int kRows>
void multiply_tile(const float* panel, std::int64_t ldp, const float* x, std::int64_t ldx, std::int64_t k, float* y,
                   std::int64_t ldy, std::int64_t n, bool accumulate) {
  Vec sums[kRows][2] = {};
  for (std::int64_t i = 0; i < k; ++i) {
    const Vec left = load(panel + i * ldp);
    const Vec right = load(panel + i * ldp + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float value = x[r * ldx + i];
      sums[r][0] += left * value;
      sums[r][1] += right * value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* out = y + r * ldy;
    if (n == kPanelWidth) {
      store(out, accumulate ? load(out) + sums[r][0] : sums[r][0]);
      store(out + kLanes, accumulate ? load(out + kLanes) + sums[r][1] : sums[r][1]);
    } else {
      float tail[kPanelWidth];
      store(tail, sums[r][0]);
      store(tail + kLanes, sums[r][1]);
      for (std::int64_t j = 0; j < n; ++j) out[j] = accumulate ? out[j] + tail[j] : tail[j];
    }
  }
}

/// The last m < kRows + 1 rows in one tile of just that height.
template <int kRows>
void multiply_last_rows(const float* panel, std::int64_t ldp, const float* x, std::int64_t ldx, std::int64_t m,
                        std::int64_t k, float* y, std::int64_t ldy, std::int64_t n, bool accumulate) {
  if (m == kRows) {
    multiply_tile<kRows>(panel, ldp, x, ldx, k, y, ldy, n, accumulate);
  } else if constexpr (kRows > 1) {
    multiply_last_rows<kRows - 1>(panel, ldp, x, ldx, m, k, y, ldy, n, accumulate);
  }
}

void multiply_panel(const float* panel, std::int64_t ldp, const float* x, std::int64_t ldx, std::int64_t m,
                    std::int64_t k, float* y, std::int64_t ldy, std::int64_t n, bool accumulate) {
  for (; m > kTileRows; m -= kTileRows, x += kTileRows * ldx, y += kTileRows * ldy) {
    multiply_tile<kTileRows>(panel, ldp, x, ldx, k, y, ldy, n, accumulate);
  }
  multiply_last_rows<kTileRows>(panel, ldp, x, ldx, m, k, y, ldy, n, accumulate);
}

void rms_norm(const float* x, const float* gain, std::int64_t n, float eps, float* out) {
  Vec sums = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += load(x + i) * load(x + i);
  float sum = sum_lanes(sums);
  for (; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0F / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * scale * gain[i];
}

/// body(vector, index) on every full vector, then on a zero-padded last one; returns what to store.
template <class Body>
void map_vectors(float* x, std::int64_t n, float padding, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, body(load(x + i)));
  if (i == n) return;
  float last[kLanes];
  for (std::int64_t j = 0; j < kLanes; ++j) last[j] = i + j < n ? x[i + j] : padding;
  store(last, body(load(last)));
  for (std::int64_t j = i; j < n; ++j) x[j] = last[j - i];
}

void silu_multiply(float* gate, const float* up, std::int64_t n) {
  map_vectors(gate, n, 0.0F, [](Vec v) { return v / (exponential(-v) + 1.0F); });
  for (std::int64_t i = 0; i < n; ++i) gate[i] *= up[i];
}

void gelu_multiply(float* gate, const float* up, std::int64_t n) {
  // (1 + tanh u) / 2 = 1 / (1 + exp(-2u)) with u = sqrt(2 / pi) (v + 0.044715 v³).
  constexpr float kSlope = 1.5957691216057308F, kCubic = 0.044715F;
  map_vectors(gate, n, 0.0F, [](Vec v) { return v / (exponential(v * (v * v * kCubic + 1.0F) * -kSlope) + 1.0F); });
  for (std::int64_t i = 0; i < n; ++i) gate[i] *= up[i];
}

void softmax(float* x, std::int64_t n) {
  if (n == 0) return;
  float largest = x[0];
  for (std::int64_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  Vec sums = {};
  // Padding far below the maximum adds nothing to the sum that float32 can hold.
  map_vectors(x, n, largest - 1000.0F, [&](Vec v) {
    const Vec difference = v - largest;
    const Vec value = difference < broadcast(-86.0F) ? Vec{} : exponential(difference);
    sums += value;
    return value;
  });
  const float scale = 1.0F / sum_lanes(sums);
  for (std::int64_t i = 0; i < n; ++i) x[i] *= scale;
}

void add(const float* x, std::int64_t n, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}

constexpr Kernels make_kernels(const char* isa) {
  return {isa, kPanelWidth, read_row, dots, pack_panel, multiply_panel, rms_norm, silu_multiply, gelu_multiply, softmax, add};
}

}  // namespace
}  // namespace spear
