#if defined(__AVX512BF16__)

#include "ops/cpu/attention_kernels_impl.h"

namespace spear {
extern const AttentionKernels kAvx512Bf16Attention;
const AttentionKernels kAvx512Bf16Attention = make_attention_kernels("avx512bf16");
}  // namespace spear

#endif
