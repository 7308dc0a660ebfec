#include "ops/cpu/kernels.h"

#include <fmt/format.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"

namespace spear {

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

namespace {

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // f16c is older than both
  if (avx2 && __builtin_cpu_supports("avx512f")) tables.push_back(&kAvx512Kernels);
  if (avx2) tables.push_back(&kAvx2Kernels);
#elif defined(__aarch64__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) tables.push_back(&kNeonKernels);
#endif
  tables.push_back(&kGenericKernels);
  return tables;
}

}  // namespace

std::span<const Kernels* const> available_kernels() {
  static const std::vector<const Kernels*> tables = detect();
  return tables;
}

const Kernels& kernels_for(std::string_view isa) {
  std::string names;
  for (const Kernels* table : available_kernels()) {
    if (table->isa == isa) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw usage_error(fmt::format("this machine has no instruction set '{}'", isa), "SPEAR_FORCE_ISA",
                    fmt::format("unset it, or use one of: {}", names));
}

const Kernels& default_kernels() {
  const char* forced = std::getenv("SPEAR_FORCE_ISA");
  return forced == nullptr || *forced == '\0' ? *available_kernels().front() : kernels_for(forced);
}

}  // namespace spear
