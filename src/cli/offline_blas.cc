#include "cli/offline_blas.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "base/log.h"

namespace spear::cli {

void use_known_blas_kernels(char** argv) {
#ifdef __x86_64__
  constexpr const char* kVariable = "OPENBLAS_CORETYPE";
  const auto core_name = reinterpret_cast<char* (*)()>(dlsym(RTLD_DEFAULT, "openblas_get_corename"));
  if (core_name == nullptr || std::getenv(kVariable) != nullptr || std::string_view(core_name()) != "Prescott") return;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!avx2) return;
  std::error_code failure;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", failure);
  if (failure) return;
  setenv(kVariable, avx512 ? "SkylakeX" : "Haswell", 1);
  execv(program.c_str(), argv);
  log::warn("OpenBLAS does not know this processor and is slow; set {} by hand", kVariable);
#else
  (void)argv;
#endif
}

}  // namespace spear::cli
