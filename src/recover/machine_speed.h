#pragma once

#include "torch/libtorch.h"

namespace spear {

/// Products in `type` of this machine's CPU with the threads that torch has, GFLOP/s: median of a few products of the size
/// that calibration is made of, a second of work at most.
double measured_gflops(torch::ScalarType type);

}  // namespace spear
