#pragma once

namespace spear {

/// bfloat16 products of this machine's CPU with the threads that torch has, GFLOP/s: median of a few products of the size
/// that calibration is made of, a second of work at most.
double measured_bf16_gflops();

}  // namespace spear
