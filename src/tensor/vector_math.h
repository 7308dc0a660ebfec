// Elementary functions that compilers vectorize: no branches, no calls, no errno.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

/// Compiles a function for AVX-512, AVX2 and the baseline; the loader picks by CPU.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SPEAR_SANITIZED)
#define SPEAR_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), optimize("O3")))
#else
#define SPEAR_VECTOR_CLONES
#endif

namespace spear {

/// e^x to 2 ulp (Cephes polynomial). x is clamped to [-87.3, 88.3]: very small arguments give about 1e-38, not 0.
inline __attribute__((always_inline)) float vector_exp(float x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding and subtracting rounds to an integer
  x = std::min(std::max(x, -87.3F), 88.3F);
  const float shifted = x * 1.44269504088896341F + kRound;
  const float n = shifted - kRound;
  const float r = x - n * 0.693359375F + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const auto exponent = (std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound)) << 23;
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(p) + exponent);
}

}  // namespace spear
