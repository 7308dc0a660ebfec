#if defined(__AVX2__)

#include "ops/cpu/kernels_impl.h"

namespace spear {
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = make_kernels("avx2");
}  // namespace spear

#endif
