// Pairs of AVX2 vectors: see packed_simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace spear {
namespace {

constexpr int kPanelsAtOnce = 1;
constexpr int kByteStepsAtOnce = 2;  // with more, GCC 12 widens all codes first and spills them
constexpr int tile_tokens(int bits, int planes) { return bits == 4 && planes == 2 ? 2 : 4; }

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
// Sums over up to 32 columns stay in 16 bits: eight pairs of products with codes of 0..15 are at most 8 * 2 * 15 * 128 =
// 30,720.
struct Partial {
  __m256i a, b;
};
inline Partial begin_partial(Ints) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Partial dot_nibbles(Partial sum, Bytes codes, Quad x) {
  return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(codes.a, x.v)),
          _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(codes.b, x.v))};
}
inline Ints end_partial(Ints sum, Partial partial) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(partial.a, one)),
          _mm256_add_epi32(sum.b, _mm256_madd_epi16(partial.b, one))};
}

// Two full bytes would saturate VPMADDUBSW. They are widened, and so the two planes of an activation can be one number.
constexpr bool kWidensBytes = true, kSignedBytes = false;
struct Words {
  Bytes even, odd;
};
inline Words widen(Bytes codes) {
  const __m256i low = _mm256_set1_epi16(255);
  return {{_mm256_and_si256(codes.a, low), _mm256_and_si256(codes.b, low)},
          {_mm256_srli_epi16(codes.a, 8), _mm256_srli_epi16(codes.b, 8)}};
}
/// Codes of a token as 256 plane0 + plane1 (or plane0), each four in the order 0 2 1 3.
template <int kPlanes, int kColumns>
inline void join_planes(const std::int8_t* x, std::int64_t ldx, std::int16_t* out) {
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  const auto load = [&](const std::int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), order));
  };
  for (int i = 0; i < kColumns; i += 16) {
    __m256i joined = load(x + i);
    if constexpr (kPlanes == 2) joined = _mm256_add_epi16(_mm256_slli_epi16(joined, 8), load(x + ldx + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), joined);
  }
}
inline Ints dot_words(Ints sum, Words codes, const std::int16_t* x) {
  const Quad even = load_quad(reinterpret_cast<const std::int8_t*>(x));
  const Quad odd = load_quad(reinterpret_cast<const std::int8_t*>(x + 2));
  const auto dot = [&](__m256i s, __m256i e, __m256i o) {
    s = _mm256_add_epi32(s, _mm256_madd_epi16(e, even.v));
    return _mm256_add_epi32(s, _mm256_madd_epi16(o, odd.v));
  };
  return {dot(sum.a, codes.even.a, codes.odd.a), dot(sum.b, codes.even.b, codes.odd.b)};
}

inline Bytes load_columns(const std::int8_t* p) { return load_bytes(reinterpret_cast<const std::uint8_t*>(p)); }
inline Bytes repeat_byte(int code) {
  return {_mm256_set1_epi8(static_cast<char>(code)), _mm256_set1_epi8(static_cast<char>(code))};
}
inline __m256i dot_pairs(__m256i codes, __m256i x, __m256i weight) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), weight);
}
// A full byte is taken as 16 times its high nibble plus its low one.
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
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  const __m256i both = _mm256_set1_epi32(word), high = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(_mm256_and_si256(both, high))};
}
inline Floats dot_bf16(Floats sum, Bytes w, Pair x) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  const auto dot = [&](__m256 s, __m256i pair) {
    s = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)), x.low, s);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(pair, high)), x.high, s);
  };
  return {dot(sum.a, w.a), dot(sum.b, w.b)};
}

}  // namespace
}  // namespace spear
