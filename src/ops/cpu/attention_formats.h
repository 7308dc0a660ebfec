// Vectors of the instruction set that this translation unit is compiled for, and the three storage formats of keys
// and values as the attention kernels see them. Everything has internal linkage, as in simd.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spear {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
// Rows of a tile: 12 x 2 accumulators + 2 vectors + 1 broadcast of 32 registers. Pairs that are widened: 4 vectors.
constexpr int kRowsOfSingles = 12, kRowsOfPairs = 12;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kRowsOfSingles = 6, kRowsOfPairs = 4;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kWidth = 4;
constexpr int kRowsOfSingles = 8, kRowsOfPairs = 8;  // of 32 registers: GCC loads the rows' numbers first
#else
constexpr int kWidth = 4;
constexpr int kRowsOfSingles = 4, kRowsOfPairs = 4;
#endif

using Floats = float __attribute__((vector_size(4 * kWidth)));
using Ints = std::int32_t __attribute__((vector_size(4 * kWidth)));

template <class To, class From>
inline __attribute__((always_inline)) To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Vector, class Element>
inline __attribute__((always_inline)) Vector load_vector(const Element* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load_floats(const float* p) { return load_vector<Floats>(p); }
inline void store_floats(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline Floats filled(float f) { return Floats{} + f; }
inline float first_lane(Floats v) { return v[0]; }

/// All bits set in the lanes below `count`.
inline Ints lanes_below(std::int64_t count) {
  Ints lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(count);
}

inline float sum_of_lanes(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float sum = v[0];
  for (int i = 1; i < kWidth; ++i) sum += v[i];
  return sum;
#endif
}

inline float largest_lane(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float largest = v[0];
  for (int i = 1; i < kWidth; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

/// Round to nearest even, NaN kept.
inline std::uint16_t to_bf16(float f) {
  const auto bits = bits_of<std::uint32_t>(f);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? (bits >> 16) | 0x40U : rounded);
}

/// 2^x for x <= 0; below -126 it gives 2^-126. 2^0 is exactly 1. kAccurate: 2e-7, else 3e-6 (relative).
template <bool kAccurate>
inline __attribute__((always_inline)) Floats exp2_of(Floats x) {
  x = filled(-126.0F) > x ? filled(-126.0F) : x;  // NaN stays
  const Floats shifted = x + 12582912.0F;  // 1.5 * 2^23: the low mantissa bits are the rounded integer
  const Floats r = x - (shifted - 12582912.0F);
  Floats p;
  if constexpr (kAccurate) {  // Cephes' exp2f
    p = filled(1.535336188319500e-4F);
    p = p * r + 1.339887440266574e-3F;
    p = p * r + 9.618437357674640e-3F;
    p = p * r + 5.550332471162809e-2F;
    p = p * r + 2.402264791363012e-1F;
    p = p * r + 6.931472028550421e-1F;
  } else {  // least relative error on [-1/2, 1/2], given 2^0 = 1; what the weights meet has 8 bits
    p = filled(9.582853e-3F);
    p = p * r + 5.5906426e-2F;
    p = p * r + 2.4024099e-1F;
    p = p * r + 6.9312418e-1F;
  }
  p = p * r + 1.0F;
  return bits_of<Floats>(bits_of<Ints>(p) + (bits_of<Ints>(shifted) << 23));
}

struct Float32Format {
  using Element = float;  // of a block
  using Left = float;     // of a query or of weights, per step
  using Weight = float;   // per token
  static constexpr int kPair = 1, kRows = kRowsOfSingles;
  static constexpr bool kScaled = false;
  static Floats load(const Element* p) { return load_floats(p); }
  static float broadcast(Left value) { return value; }
  static Floats multiply_add(float a, Floats b, Floats sum) { return sum + a * b; }
  static Floats power_of_two(Floats x) { return exp2_of<true>(x); }
  static void store_weights(Weight* p, Floats w) { store_floats(p, w); }
};

/// Two bf16 per step: even element in the low half. Without bf16 instructions they are widened, and what they meet is
/// float32.
struct PairFormat {
  static constexpr int kPair = 2, kRows = kRowsOfPairs;
  static Floats power_of_two(Floats x) { return exp2_of<false>(x); }

#if defined(__AVX512BF16__)
  using Left = std::uint32_t;
  using Weight = std::uint16_t;
  using Pairs = __m512bh;
  static Pairs broadcast(Left value) { return bits_of<__m512bh>(_mm512_set1_epi32(static_cast<int>(value))); }
  static Floats multiply_add(Pairs a, Pairs b, Floats sum) { return _mm512_dpbf16_ps(sum, a, b); }
  static void store_weights(Weight* p, Floats w) {
    const __m256bh halves = _mm512_cvtneps_pbh(w);
    std::memcpy(p, &halves, sizeof halves);
  }
#else
  struct Left {
    float low, high;
  };
  using Weight = float;
  struct Pairs {
    Floats low, high;
  };
  static Left broadcast(Left value) { return value; }
  static Floats multiply_add(Left a, Pairs b, Floats sum) {
    sum += a.low * b.low;
    return sum + a.high * b.high;
  }
  static void store_weights(Weight* p, Floats w) { store_floats(p, w); }
#endif
};

struct Bf16Format : PairFormat {
  using Element = std::uint32_t;
  static constexpr bool kScaled = false;
#if defined(__AVX512BF16__)
  static Pairs load(const Element* p) {
    auto pairs = load_vector<__m512i>(p);
    asm("" : "+v"(pairs));  // GCC 12 would load it again for every row of the tile
    return bits_of<__m512bh>(pairs);
  }
#else
  static Pairs load(const Element* p) {
    const Ints pairs = load_vector<Ints>(p);
    return {bits_of<Floats>(pairs << 16), bits_of<Floats>(pairs & static_cast<std::int32_t>(0xffff0000U))};
  }
#endif
};

/// Two int8 per step, which bf16 holds exactly; the scale of a token goes to its score and to its weight.
struct Int8Format : PairFormat {
  using Element = std::uint16_t;
  static constexpr bool kScaled = true;
  static Floats scales(const std::byte* scales, std::int64_t slot) {
    return load_floats(reinterpret_cast<const float*>(scales) + slot);
  }
#if defined(__AVX512BF16__)
  static Pairs load(const Element* p) {
    const __m256i bytes = load_vector<__m256i>(p);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    return _mm512_cvtne2ps_pbh(high, low);
  }
#else
  static Pairs load(const Element* p) {
    using Halves = std::int16_t __attribute__((vector_size(2 * kWidth)));
    const Ints pairs = __builtin_convertvector(load_vector<Halves>(p), Ints);
    return {__builtin_convertvector((pairs << 24) >> 24, Floats), __builtin_convertvector(pairs >> 8, Floats)};
  }
#endif
};

}  // namespace
}  // namespace spear
