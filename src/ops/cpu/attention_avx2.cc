#if defined(__AVX2__)

#include "ops/cpu/attention_kernels_impl.h"

namespace spear {
extern const AttentionKernels kAvx2Attention;
const AttentionKernels kAvx2Attention = make_attention_kernels("avx2");
}  // namespace spear

#endif
