#include "ops/cpu/packed_impl.h"

namespace spear {
extern const PackedKernels kGenericPackedKernels;
const PackedKernels kGenericPackedKernels = make_packed_kernels("generic");
}  // namespace spear
