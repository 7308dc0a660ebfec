#pragma once

namespace spear::cli {

/// Debian's OpenBLAS (0.3.21) knows processors by model number and gives those it has not met SSE3 kernels, several
/// times slower. Where that happens and the processor has AVX2 or AVX-512, starts this program again with
/// OPENBLAS_CORETYPE saying so. Does nothing with another BLAS, or if the user has set the variable.
void use_known_blas_kernels(char** argv);

}  // namespace spear::cli
