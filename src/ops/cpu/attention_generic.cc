#include "ops/cpu/attention_kernels_impl.h"

namespace spear {
extern const AttentionKernels kGenericAttention;
const AttentionKernels kGenericAttention = make_attention_kernels("generic");
}  // namespace spear
