#if defined(__AVX512F__)

#include "ops/cpu/attention_kernels_impl.h"

namespace spear {
extern const AttentionKernels kAvx512Attention;
const AttentionKernels kAvx512Attention = make_attention_kernels("avx512");
}  // namespace spear

#endif
