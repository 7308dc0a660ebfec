#if defined(__AVX512VNNI__)

#include "ops/cpu/packed_impl.h"

namespace spear {
extern const PackedKernels kAvx512PackedKernels;
const PackedKernels kAvx512PackedKernels = make_packed_kernels("avx512");
}  // namespace spear

#endif
