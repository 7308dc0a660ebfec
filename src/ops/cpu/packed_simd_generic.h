// Plain arrays: see packed_simd.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace spear {
namespace {

constexpr int kPanelsAtOnce = 1;
constexpr int kByteStepsAtOnce = 8;
constexpr int tile_tokens(int /*bits*/, int /*planes*/) { return 1; }

struct Ints {
  std::int32_t v[16];
};
struct Floats {
  float v[16];
};
struct Bytes {
  std::uint8_t v[64];
};
struct Quad {
  std::int8_t v[4];
};
struct Pair {
  float low, high;
};

template <class Vector, class Body>
inline Vector each_row(Body body) {
  Vector out;
  for (int i = 0; i < 16; ++i) out.v[i] = body(i);
  return out;
}
inline float widen_bf16(std::uint16_t h) {
  const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline float widen_f16(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000U) << 16, rest = h & 0x7fffU;
  std::uint32_t bits = sign | ((rest << 13) + 0x38000000U);
  float f;
  if (rest < 0x400U) {  // subnormal
    f = static_cast<float>(rest) * 0x1p-24F;
    return sign != 0 ? -f : f;
  }
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline Ints zero_ints() { return {}; }
inline Ints broadcast_int(std::int32_t i) {
  return each_row<Ints>([=](int) { return i; });
}
inline Ints add(Ints a, Ints b) {
  return each_row<Ints>([&](int i) { return a.v[i] + b.v[i]; });
}
inline Ints multiply(Ints a, Ints b) {
  return each_row<Ints>([&](int i) { return a.v[i] * b.v[i]; });
}
template <int kBits>
inline Ints shift_left(Ints a) {
  return each_row<Ints>([&](int i) { return a.v[i] * (1 << kBits); });
}
inline Ints load_zeros(const std::uint8_t* p) {
  return each_row<Ints>([=](int i) { return p[i]; });
}
inline Bytes load_bytes(const std::uint8_t* p) {
  Bytes out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline Bytes low_nibbles(Bytes b) {
  for (auto& byte : b.v) byte &= 15;
  return b;
}
inline Bytes high_nibbles(Bytes b) {
  for (auto& byte : b.v) byte = static_cast<std::uint8_t>(byte >> 4);
  return b;
}
inline Quad load_quad(const std::int8_t* p) {
  Quad out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
constexpr bool kSignedBytes = false;
inline Ints dot_bytes(Ints sum, Bytes w, Quad x) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) sum.v[i] += w.v[4 * i + j] * x.v[j];
  }
  return sum;
}
inline Ints dot_nibbles(Ints sum, Bytes codes, Quad x) { return dot_bytes(sum, codes, x); }

inline Bytes load_columns(const std::int8_t* p) { return load_bytes(reinterpret_cast<const std::uint8_t*>(p)); }
inline Bytes repeat_byte(int code) {
  Bytes out;
  std::memset(out.v, code, sizeof out.v);
  return out;
}
inline Ints dot_columns(Bytes w, Bytes x) {
  return each_row<Ints>([&](int i) {
    std::int32_t sum = 0;
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum += w.v[j] * static_cast<std::int8_t>(x.v[j]);
    return sum;
  });
}
inline Ints subtract(Ints a, Ints b) {
  return each_row<Ints>([&](int i) { return a.v[i] - b.v[i]; });
}

inline Floats zero_floats() { return {}; }
inline Floats broadcast_float(float f) {
  return each_row<Floats>([=](int) { return f; });
}
inline Floats to_floats(Ints a) {
  return each_row<Floats>([&](int i) { return static_cast<float>(a.v[i]); });
}
inline Floats multiply(Floats a, Floats b) {
  return each_row<Floats>([&](int i) { return a.v[i] * b.v[i]; });
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {  // one rounding, as the other instruction sets do
  return each_row<Floats>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline Floats load_floats(const float* p) {
  return each_row<Floats>([=](int i) { return p[i]; });
}
inline Floats load_halves(const std::uint16_t* p) {
  return each_row<Floats>([=](int i) { return widen_f16(p[i]); });
}
inline Floats load_signed(const std::int8_t* p) {
  return each_row<Floats>([=](int i) { return static_cast<float>(p[i]); });
}
inline void store(float* p, Floats a) { std::memcpy(p, a.v, sizeof a.v); }

inline Floats divide(Floats a, Floats b) {
  return each_row<Floats>([&](int i) { return a.v[i] / b.v[i]; });
}
inline Floats clamp(Floats a, float low, float high) {  // a NaN becomes `low`, as MAXPS makes it
  return each_row<Floats>([&](int i) {
    const float raised = a.v[i] > low ? a.v[i] : low;
    return raised < high ? raised : high;
  });
}
inline Floats power_of_two(Floats shifted) {
  return each_row<Floats>([&](int i) {
    std::uint32_t bits;
    std::memcpy(&bits, &shifted.v[i], sizeof bits);
    bits = (bits << 23) + 0x3f800000U;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  });
}

inline Pair load_pair(const std::uint16_t* p) { return {widen_bf16(p[0]), widen_bf16(p[1])}; }
inline Floats dot_bf16(Floats sum, Bytes w, Pair x) {
  for (int i = 0; i < 16; ++i) {
    std::uint16_t pair[2];
    std::memcpy(pair, w.v + 4 * i, sizeof pair);
    sum.v[i] += widen_bf16(pair[0]) * x.low + widen_bf16(pair[1]) * x.high;
  }
  return sum;
}

}  // namespace
}  // namespace spear
