#if defined(__ARM_FEATURE_DOTPROD)

#include "ops/cpu/attention_kernels_impl.h"

namespace spear {
extern const AttentionKernels kNeonAttention;
const AttentionKernels kNeonAttention = make_attention_kernels("neon");
}  // namespace spear

#endif
