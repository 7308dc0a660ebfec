// Vectors of 16 rows for the instruction set that this translation unit is compiled for. Everything has internal
// linkage: the same names mean different code in each unit.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spear {
namespace {

#if defined(__AVX512VNNI__)

constexpr int kPanelsAtOnce = 2;        // panels of a register tile
constexpr int kTokens[3] = {12, 6, 4};  // tokens of a register tile: bf16, one plane, two planes

struct Ints {
  __m512i v;
};
struct Floats {
  __m512 v;
};
struct Bytes {
  __m512i v;
};  // 16 rows x 4 unsigned codes
struct Quad {
  __m512i v;
};  // 4 signed activation codes, in every row
struct Pair {
  __m512i v;
};  // 2 bf16 activations, in every row

inline Ints zero_ints() { return {_mm512_setzero_si512()}; }
inline Ints broadcast_int(std::int32_t i) { return {_mm512_set1_epi32(i)}; }
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints multiply(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
template <int kBits>
inline Ints shift_left(Ints a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
inline Ints load_zeros(const std::uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Bytes load_bytes(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes low_nibbles(Bytes b) { return {_mm512_and_si512(b.v, _mm512_set1_epi8(15))}; }
inline Bytes high_nibbles(Bytes b) { return {_mm512_and_si512(_mm512_srli_epi16(b.v, 4), _mm512_set1_epi8(15))}; }
inline Quad load_quad(const std::int8_t* p) {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return {_mm512_set1_epi32(word)};
}
inline Ints dot_nibbles(Ints sum, Bytes codes, Quad x) { return {_mm512_dpbusd_epi32(sum.v, codes.v, x.v)}; }
inline Ints dot_bytes(Ints sum, Bytes codes, Quad x) { return {_mm512_dpbusd_epi32(sum.v, codes.v, x.v)}; }

// 64 columns of one row: lane i sums the columns 4i to 4i + 3.
inline Bytes load_columns(const std::int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes repeat_byte(int code) { return {_mm512_set1_epi8(static_cast<char>(code))}; }
inline Ints dot_columns(Bytes codes, Bytes x) { return {_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes.v, x.v)}; }
inline Ints subtract(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }

inline Floats zero_floats() { return {_mm512_setzero_ps()}; }
inline Floats broadcast_float(float f) { return {_mm512_set1_ps(f)}; }
inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats load_floats(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load_halves(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Floats load_signed(const std::int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }

inline Floats divide(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats clamp(Floats a, float low, float high) {
  return {_mm512_min_ps(_mm512_max_ps(a.v, _mm512_set1_ps(low)), _mm512_set1_ps(high))};
}
/// 2^n for n in the low mantissa bits of 1.5 * 2^23 + n.
inline Floats power_of_two(Floats shifted) {
  const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)))};
}

inline Pair load_pair(const std::uint16_t* p) {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return {_mm512_set1_epi32(word)};
}
inline Floats dot_bf16(Floats sum, Bytes w, Pair x) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)w.v, (__m512bh)x.v)}; }

#elif defined(__AVX2__)

constexpr int kPanelsAtOnce = 1;
constexpr int kTokens[3] = {4, 2, 1};

struct Ints {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};
struct Bytes {
  __m256i a, b;
};
struct Quad {
  __m256i v;
};
struct Pair {
  __m256 low, high;
};

inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints broadcast_int(std::int32_t i) { return {_mm256_set1_epi32(i), _mm256_set1_epi32(i)}; }
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints multiply(Ints x, Ints y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
template <int kBits>
inline Ints shift_left(Ints x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}
inline Ints load_zeros(const std::uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Bytes load_bytes(const std::uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Bytes low_nibbles(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline Bytes high_nibbles(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
inline Quad load_quad(const std::int8_t* p) {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return {_mm256_set1_epi32(word)};
}
// Codes of 0..15 keep the 16-bit pair sums of VPMADDUBSW far from saturation: 2 * 15 * 128 = 3840.
inline __m256i dot_pairs(__m256i codes, __m256i x, __m256i weight) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), weight);
}
inline Ints dot_nibbles(Ints sum, Bytes w, Quad x) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.a, dot_pairs(w.a, x.v, one)), _mm256_add_epi32(sum.b, dot_pairs(w.b, x.v, one))};
}
// A full byte would saturate: it is taken as 16 times its high nibble plus its low one.
inline Ints dot_bytes(Ints sum, Bytes w, Quad x) {
  const Bytes low = low_nibbles(w), high = high_nibbles(w);
  const __m256i sixteen = _mm256_set1_epi16(16);
  sum = dot_nibbles(sum, low, x);
  return {_mm256_add_epi32(sum.a, dot_pairs(high.a, x.v, sixteen)),
          _mm256_add_epi32(sum.b, dot_pairs(high.b, x.v, sixteen))};
}

inline Bytes load_columns(const std::int8_t* p) { return load_bytes(reinterpret_cast<const std::uint8_t*>(p)); }
inline Bytes repeat_byte(int code) {
  return {_mm256_set1_epi8(static_cast<char>(code)), _mm256_set1_epi8(static_cast<char>(code))};
}
inline Ints dot_columns(Bytes w, Bytes x) {
  const Bytes low = low_nibbles(w), high = high_nibbles(w);
  const __m256i one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
  return {_mm256_add_epi32(dot_pairs(low.a, x.a, one), dot_pairs(high.a, x.a, sixteen)),
          _mm256_add_epi32(dot_pairs(low.b, x.b, one), dot_pairs(high.b, x.b, sixteen))};
}
inline Ints subtract(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }

inline Floats zero_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats broadcast_float(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Floats multiply(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats multiply_add(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Floats load_halves(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Floats load_signed(const std::int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}

inline Floats divide(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats clamp(Floats x, float low, float high) {
  const __m256 l = _mm256_set1_ps(low), h = _mm256_set1_ps(high);
  return {_mm256_min_ps(_mm256_max_ps(x.a, l), h), _mm256_min_ps(_mm256_max_ps(x.b, l), h)};
}
inline Floats power_of_two(Floats shifted) {
  const auto power = [](__m256 v) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(v), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000)));
  };
  return {power(shifted.a), power(shifted.b)};
}

inline Pair load_pair(const std::uint16_t* p) {
  const auto widen = [](std::uint16_t h) {
    const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return _mm256_set1_ps(f);
  };
  return {widen(p[0]), widen(p[1])};
}
inline Floats dot_bf16(Floats sum, Bytes w, Pair x) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  const auto dot = [&](__m256 s, __m256i pair) {
    s = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)), x.low, s);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(pair, high)), x.high, s);
  };
  return {dot(sum.a, w.a), dot(sum.b, w.b)};
}

#else

constexpr int kPanelsAtOnce = 1;
constexpr int kTokens[3] = {1, 1, 1};

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
inline Ints dot_bytes(Ints sum, Bytes w, Quad x) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) sum.v[i] += w.v[4 * i + j] * x.v[j];
  }
  return sum;
}
inline Ints dot_nibbles(Ints sum, Bytes w, Quad x) { return dot_bytes(sum, w, x); }

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

#endif

}  // namespace
}  // namespace spear
