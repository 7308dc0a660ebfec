#if defined(__ARM_FEATURE_DOTPROD)

#include "ops/cpu/packed_impl.h"

namespace spear {
extern const PackedKernels kNeonPackedKernels;
const PackedKernels kNeonPackedKernels = make_packed_kernels("neon");
}  // namespace spear

#endif
