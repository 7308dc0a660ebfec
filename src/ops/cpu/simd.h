// The vector type of the instruction set that this translation unit is compiled for, and the few operations that
// need its intrinsics. Everything has internal linkage: the same names mean different code in each unit.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#else
#include "tensor/dtype.h"
#endif

namespace spear {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // 12 x 2 accumulators + 2 panel vectors + 1 broadcast of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // 6 x 2 + 2 + 1 of 16 registers
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kLanes = 4;
constexpr int kTileRows = 8;  // 8 x 2 + 2 of 32 registers, and all 8 scalars, which GCC loads first
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 4;
#endif

using Vec = float __attribute__((vector_size(4 * kLanes)));
using IntVec = std::uint32_t __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(float f) { return Vec{} + f; }

inline float sum_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#elif defined(__AVX2__)
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return vaddvq_f32(v);
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

/// e^x to 2 ulp on [-87, 88]; inputs outside are clamped. (Cephes' polynomial.)
inline Vec exponential(Vec x) {
  x = x < broadcast(-87.0F) ? broadcast(-87.0F) : x;
  x = x > broadcast(88.0F) ? broadcast(88.0F) : x;
  const Vec shifter = broadcast(12582912.0F);  // 1.5 * 2^23: the sum's low mantissa bits are the rounded integer
  const Vec shifted = x * 1.44269504088896341F + shifter;
  const Vec n = shifted - shifter;
  const Vec r = x - n * 0.693359375F - n * -2.12194440e-4F;
  Vec p = broadcast(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000U;  // 2^n; what the shifter left above is shifted out
  Vec scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

/// kLanes half-precision values at p.
inline Vec load_f16(const std::uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = f16_to_f32(p[i]);
  return v;
#endif
}

inline Vec load_bf16(const std::uint16_t* p) {
  std::uint16_t __attribute__((vector_size(2 * kLanes))) narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  const IntVec bits = __builtin_convertvector(narrow, IntVec) << 16;
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

inline Vec load_i8(const std::int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(p[i]);
  return v;
#endif
}

/// out[8 i + j] = scale * (nibble j of word i - zero). The product is exact: an 11-bit scale times a 5-bit integer.
inline void decode_w4(const std::uint32_t* words, std::int64_t count, float scale, int zero, float* out) {
  float table[16];
  for (int code = 0; code < 16; ++code) table[code] = scale * static_cast<float>(code - zero);
  std::int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 lookup = _mm512_loadu_ps(table);
  const __m512i word_of_lane = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i shift = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
  for (; i + 2 <= count; i += 2) {
    const __m512i pair = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(words + i)));
    const __m512i code = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word_of_lane, pair), shift);
    _mm512_storeu_ps(out + 8 * i, _mm512_permutexvar_ps(code, lookup));  // looks at the low 4 bits only
  }
#elif defined(__AVX2__)
  const __m256i shift = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  for (; i < count; ++i) {
    const __m256i code = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(words[i])), shift);
    const __m256i centred = _mm256_sub_epi32(_mm256_and_si256(code, _mm256_set1_epi32(15)), _mm256_set1_epi32(zero));
    _mm256_storeu_ps(out + 8 * i, _mm256_mul_ps(_mm256_cvtepi32_ps(centred), _mm256_set1_ps(scale)));
  }
#elif defined(__ARM_FEATURE_DOTPROD)
  const int32x4_t shifts[] = {{0, -4, -8, -12}, {-16, -20, -24, -28}};  // to the right
  for (; i < count; ++i) {
    for (int half = 0; half < 2; ++half) {
      const uint32x4_t code = vandq_u32(vshlq_u32(vdupq_n_u32(words[i]), shifts[half]), vdupq_n_u32(15));
      const int32x4_t centred = vsubq_s32(vreinterpretq_s32_u32(code), vdupq_n_s32(zero));
      vst1q_f32(out + 8 * i + 4 * half, vmulq_n_f32(vcvtq_f32_s32(centred), scale));
    }
  }
#endif
  for (; i < count; ++i) {
    for (int j = 0; j < 8; ++j) out[8 * i + j] = table[(words[i] >> (4 * j)) & 0xfU];
  }
}

}  // namespace
}  // namespace spear
