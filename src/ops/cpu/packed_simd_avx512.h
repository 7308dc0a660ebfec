// Vectors of AVX-512 with VNNI and BF16: see packed_simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace spear {
namespace {

constexpr int kPanelsAtOnce = 2;
constexpr int kByteStepsAtOnce = 8;
constexpr int tile_tokens(int /*bits*/, int planes) { return planes == 0 ? 12 : planes == 1 ? 6 : 4; }

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
constexpr bool kSignedBytes = false;
inline Ints dot_bytes(Ints sum, Bytes codes, Quad x) { return {_mm512_dpbusd_epi32(sum.v, codes.v, x.v)}; }
inline Ints dot_nibbles(Ints sum, Bytes codes, Quad x) { return dot_bytes(sum, codes, x); }

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

}  // namespace
}  // namespace spear
