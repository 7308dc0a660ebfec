// Float32 products of libtorch by oneDNN instead of the system's BLAS. Debian's libtorch calls BLAS through the symbol
// sgemm_; the one that a program defines itself goes before a library's. With two threads of an Emerald Rapids oneDNN is
// about 1.2 times as fast as OpenBLAS 0.3.21 on this project's shapes (docs/architecture.md). Its kernels keep
// data below the stack pointer: signal handlers need a stack of their own (base/interrupt.cc).
#ifdef SPEAR_HAVE_ONEDNN

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>

/// BLAS: column-major C = alpha op(A) op(B) + beta C. In oneDNN's row-major terms all three are transposed.
extern "C" void sgemm_(const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k, const float* alpha,
                       const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc) {
  if (dnnl_sgemm(*transpose_b, *transpose_a, *n, *m, *k, *alpha, b, *ldb, a, *lda, *beta, c, *ldc) == dnnl_success) return;
  // What oneDNN does not take (the letter C, sizes for BLAS to complain of).
  static const auto blas = reinterpret_cast<decltype(&sgemm_)>(dlsym(RTLD_NEXT, "sgemm_"));
  blas(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

#endif
