#include "ops/cpu/kernels_impl.h"

namespace spear {
extern const Kernels kGenericKernels;
const Kernels kGenericKernels = make_kernels("generic");
}  // namespace spear
