#include "ops/cpu/attention_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "ops/cpu/kernels.h"

namespace spear {

extern const AttentionKernels kGenericAttention;
#if defined(__x86_64__)
extern const AttentionKernels kAvx2Attention;
extern const AttentionKernels kAvx512Attention;
extern const AttentionKernels kAvx512Bf16Attention;
#elif defined(__aarch64__)
extern const AttentionKernels kNeonAttention;
#endif

const char* name(KvCacheType type) {
  switch (type) {
    case KvCacheType::f32:
      return "f32";
    case KvCacheType::bf16:
      return "bf16";
    case KvCacheType::int8:
      return "int8";
  }
  return "?";
}

KvBlockLayout block_layout(KvCacheType type, std::int64_t head_dim, std::int64_t blocks) {
  const std::int64_t pair = type == KvCacheType::f32 ? 1 : 2;         // elements per step
  const std::int64_t step_bytes = type == KvCacheType::int8 ? 2 : 4;  // of one token or column
  const std::int64_t scales = type == KvCacheType::int8 ? 4 * kBlockTokens : 0;
  KvBlockLayout layout;
  layout.type = type;
  layout.head_dim = head_dim;
  layout.key_steps = (head_dim + pair - 1) / pair;
  layout.query_floats = layout.key_steps * pair;
  layout.value_steps = kBlockTokens / pair;
  layout.panels = (head_dim + kBlockTokens - 1) / kBlockTokens;
  layout.panel_bytes = layout.value_steps * kBlockTokens * step_bytes;
  layout.key_scales = layout.key_steps * kBlockTokens * step_bytes;
  const std::int64_t value_bytes = layout.panels * layout.panel_bytes;
  layout.half_bytes = (std::max(layout.key_scales, value_bytes) + scales + 63) / 64 * 64;
  layout.values = blocks * layout.half_bytes;
  layout.value_scales = layout.values + value_bytes;
  layout.bytes = 2 * layout.half_bytes;
  return layout;
}

Prefetch prefetch_of_this_processor() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kZen5 = 26;  // before it, what is asked into L1 waits in a queue that is too short
  __builtin_cpu_init();
  if (__builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) != 0 && ((a >> 8) & 15U) + ((a >> 20) & 255U) >= kZen5) {
    return {.pieces = 3, .into_l1 = true};
  }
#endif
  return {};
}

namespace {

/// The tables of an instruction set that this machine has, best first.
void add_tables(std::string_view isa, std::vector<const AttentionKernels*>& tables) {
#if defined(__x86_64__)
  if (isa == "avx512") {
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      tables.push_back(&kAvx512Bf16Attention);
    }
    tables.push_back(&kAvx512Attention);
  }
  if (isa == "avx2") tables.push_back(&kAvx2Attention);
#elif defined(__aarch64__)
  if (isa == "neon") tables.push_back(&kNeonAttention);
#endif
  if (isa == "generic") tables.push_back(&kGenericAttention);
}

std::vector<const AttentionKernels*> detect() {
  std::vector<const AttentionKernels*> tables;
  for (const Kernels* kernels : available_kernels()) add_tables(kernels->isa, tables);
  return tables;
}

}  // namespace

std::span<const AttentionKernels* const> available_attention_kernels() {
  static const std::vector<const AttentionKernels*> tables = detect();
  return tables;
}

const AttentionKernels& attention_kernels_for(std::string_view isa) {
  for (const AttentionKernels* table : available_attention_kernels()) {
    if (std::string_view(table->isa).starts_with(isa)) return *table;
  }
  throw usage_error(fmt::format("no attention kernels for instruction set '{}'", isa), "SPEAR_FORCE_ISA", "unset it");
}

}  // namespace spear
