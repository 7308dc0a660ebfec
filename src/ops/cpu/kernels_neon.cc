#if defined(__ARM_FEATURE_DOTPROD)

#include "ops/cpu/kernels_impl.h"

namespace spear {
extern const Kernels kNeonKernels;
const Kernels kNeonKernels = make_kernels("neon");
}  // namespace spear

#endif
