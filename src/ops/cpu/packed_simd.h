// Vectors of 16 rows for the instruction set that this translation unit is compiled for; each of the four files defines
// the same names, but for what three of them share at the end of this one:
//
//   Ints, Floats        16 lanes of 32 bits, one per row
//   Bytes               16 rows x 4 unsigned codes; Quad: 4 signed activation codes, in every row
//   Pair                2 bf16 activations, in every row
//   begin_partial, dot_nibbles, end_partial   sums of products over 32 columns of 4-bit codes, from and to Ints
//   dot_bytes           the same of 8-bit codes, one step at a time; or, where kWidensBytes, widen, join_planes, dot_words
//   kSignedBytes        dot_bytes and dot_columns take 8-bit codes less 128
//   tile_tokens         tokens of a register tile by bits of the weight and planes of the activations (0: bf16)
//   kPanelsAtOnce       panels of a register tile; kByteStepsAtOnce: steps of the unrolled loop over 8-bit codes
//
// Everything has internal linkage: the same names mean different code in each unit.
#pragma once

#if defined(__AVX512VNNI__)
#include "ops/cpu/packed_simd_avx512.h"
#elif defined(__AVX2__)
#include "ops/cpu/packed_simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "ops/cpu/packed_simd_neon.h"
#else
#include "ops/cpu/packed_simd_generic.h"
#endif

#if defined(__AVX512VNNI__) || !defined(__AVX2__)
namespace spear {
namespace {

// Sums that are begun from 32-bit ones and added to them: here they are 32-bit themselves.
constexpr bool kWidensBytes = false;
inline Ints begin_partial(Ints sum) { return sum; }
inline Ints end_partial(Ints, Ints partial) { return partial; }

}  // namespace
}  // namespace spear
#endif
