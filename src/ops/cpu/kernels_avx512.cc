#if defined(__AVX512F__)

#include "ops/cpu/kernels_impl.h"

namespace spear {
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = make_kernels("avx512");
}  // namespace spear

#endif
