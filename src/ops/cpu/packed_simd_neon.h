// Four NEON vectors and the dot products of Armv8.2 (SDOT): see packed_simd.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace spear {
namespace {

constexpr int kPanelsAtOnce = 1;
constexpr int kByteStepsAtOnce = 8;
// 16 sums, 8 vectors of codes and the activations of 32 registers; the float sums of a block's end wait in memory.
constexpr int tile_tokens(int /*bits*/, int planes) { return planes == 2 ? 2 : 4; }

struct Ints {
  int32x4_t v[4];
};
struct Floats {
  float32x4_t v[4];
};
struct Bytes {
  uint8x16_t v[4];
};
struct Quad {
  int8x8_t v;  // in the low half: SDOT takes it from there for all rows
};
struct Pair {
  float32x4_t v;  // in the lanes 0 and 1
};

template <class Vector, class Body>
inline __attribute__((always_inline)) Vector each_quarter(Body body) {
  return {{body(0), body(1), body(2), body(3)}};
}

inline Ints broadcast_int(std::int32_t i) {
  return each_quarter<Ints>([=](int) { return vdupq_n_s32(i); });
}
inline Ints zero_ints() { return broadcast_int(0); }
inline Ints add(Ints x, Ints y) {
  return each_quarter<Ints>([&](int q) { return vaddq_s32(x.v[q], y.v[q]); });
}
inline Ints subtract(Ints x, Ints y) {
  return each_quarter<Ints>([&](int q) { return vsubq_s32(x.v[q], y.v[q]); });
}
inline Ints multiply(Ints x, Ints y) {
  return each_quarter<Ints>([&](int q) { return vmulq_s32(x.v[q], y.v[q]); });
}
template <int kBits>
inline Ints shift_left(Ints x) {
  return each_quarter<Ints>([&](int q) { return vshlq_n_s32(x.v[q], kBits); });
}
inline Ints load_signed_ints(const std::int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
inline Ints load_zeros(const std::uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  const uint32x4_t quarters[] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)),
                                 vmovl_high_u16(high)};
  return each_quarter<Ints>([&](int q) { return vreinterpretq_s32_u32(quarters[q]); });
}
inline Bytes load_bytes(const std::uint8_t* p) {
  return each_quarter<Bytes>([=](int q) { return vld1q_u8(p + 16 * q); });
}
inline Bytes low_nibbles(Bytes x) {
  return each_quarter<Bytes>([&](int q) { return vandq_u8(x.v[q], vdupq_n_u8(15)); });
}
inline Bytes high_nibbles(Bytes x) {
  return each_quarter<Bytes>([&](int q) { return vshrq_n_u8(x.v[q], 4); });
}
inline Quad load_quad(const std::int8_t* p) {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return {vreinterpret_s8_s32(int32x2_t{word, 0})};
}

// SDOT multiplies signed by signed. A nibble is both.
inline Ints dot_nibbles(Ints sum, Bytes codes, Quad x) {
  return each_quarter<Ints>([&](int q) { return vdotq_lane_s32(sum.v[q], vreinterpretq_s8_u8(codes.v[q]), x.v, 0); });
}
constexpr bool kSignedBytes = true;
inline int8x16_t less_128(uint8x16_t codes) { return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128))); }
inline Ints dot_bytes(Ints sum, Bytes codes, Quad x) {
  return each_quarter<Ints>([&](int q) { return vdotq_lane_s32(sum.v[q], less_128(codes.v[q]), x.v, 0); });
}

inline Bytes load_columns(const std::int8_t* p) { return load_bytes(reinterpret_cast<const std::uint8_t*>(p)); }
inline Bytes repeat_byte(int code) {
  return each_quarter<Bytes>([=](int) { return vdupq_n_u8(static_cast<std::uint8_t>(code)); });
}
inline Ints dot_columns(Bytes codes, Bytes x) {
  return each_quarter<Ints>(
      [&](int q) { return vdotq_s32(vdupq_n_s32(0), less_128(codes.v[q]), vreinterpretq_s8_u8(x.v[q])); });
}

inline Floats broadcast_float(float f) {
  return each_quarter<Floats>([=](int) { return vdupq_n_f32(f); });
}
inline Floats zero_floats() { return broadcast_float(0); }
inline Floats to_floats(Ints x) {
  return each_quarter<Floats>([&](int q) { return vcvtq_f32_s32(x.v[q]); });
}
inline Floats multiply(Floats x, Floats y) {
  return each_quarter<Floats>([&](int q) { return vmulq_f32(x.v[q], y.v[q]); });
}
inline Floats multiply_add(Floats x, Floats y, Floats z) {
  return each_quarter<Floats>([&](int q) { return vfmaq_f32(z.v[q], x.v[q], y.v[q]); });
}
inline Floats load_floats(const float* p) {
  return each_quarter<Floats>([=](int q) { return vld1q_f32(p + 4 * q); });
}
inline Floats load_halves(const std::uint16_t* p) {
  return each_quarter<Floats>([=](int q) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * q))); });
}
inline Floats load_signed(const std::int8_t* p) { return to_floats(load_signed_ints(p)); }
inline void store(float* p, Floats x) {
  for (int q = 0; q < 4; ++q) vst1q_f32(p + 4 * q, x.v[q]);
}

inline Floats divide(Floats x, Floats y) {
  return each_quarter<Floats>([&](int q) { return vdivq_f32(x.v[q], y.v[q]); });
}
inline Floats clamp(Floats x, float low, float high) {  // a NaN becomes `low`, as MAXPS makes it
  return each_quarter<Floats>(
      [&](int q) { return vminnmq_f32(vmaxnmq_f32(x.v[q], vdupq_n_f32(low)), vdupq_n_f32(high)); });
}
inline Floats power_of_two(Floats shifted) {
  return each_quarter<Floats>([&](int q) {
    const int32x4_t bits = vshlq_n_s32(vreinterpretq_s32_f32(shifted.v[q]), 23);
    return vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(0x3f800000)));
  });
}

inline Pair load_pair(const std::uint16_t* p) {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return {vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u32(uint32x2_t{word, 0}), 16))};
}
inline Floats dot_bf16(Floats sum, Bytes w, Pair x) {
  return each_quarter<Floats>([&](int q) {
    const uint32x4_t pair = vreinterpretq_u32_u8(w.v[q]);
    const float32x4_t low = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
    const float32x4_t high = vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xffff0000U)));
    return vfmaq_laneq_f32(vfmaq_laneq_f32(sum.v[q], low, x.v, 0), high, x.v, 1);
  });
}

}  // namespace
}  // namespace spear
