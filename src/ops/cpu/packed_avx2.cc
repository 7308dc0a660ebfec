#if defined(__AVX2__)

#include "ops/cpu/packed_impl.h"

namespace spear {
extern const PackedKernels kAvx2PackedKernels;
const PackedKernels kAvx2PackedKernels = make_packed_kernels("avx2");
}  // namespace spear

#endif
