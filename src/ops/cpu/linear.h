// Matrix products of the online plane, threaded over output features.
#pragma once

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"

namespace spear {

/// One thread's part: y[i, n] (+)= sum_k x[i, k] W[n, k] for n in [begin, end), i in [0, m).
/// x: [m, W.cols] with row stride ldx; y: [m, W.rows] with row stride ldy, all in floats.
void multiply_rows(const Kernels& kernels, const WeightView& weight, std::int64_t begin, std::int64_t end,
                   const float* x, std::int64_t ldx, std::int64_t m, float* y, std::int64_t ldy, bool accumulate);

/// out [m, n] (+)= p [m, k] v [k, n]: the product with a matrix that lies the other way round, as attention's values
/// do.
void multiply_columns(const Kernels& kernels, const float* p, std::int64_t ldp, std::int64_t m, std::int64_t k,
                      const float* v, std::int64_t n, float* out, std::int64_t ldo);

struct LinearJob {
  const WeightView* weight;
  float* y;  ///< [m, weight->rows], contiguous
  bool accumulate = false;
};

/// Every job reads the same x [m, cols], contiguous; their outputs are split evenly over the pool's threads.
void run_linears(ThreadPool& pool, const Kernels& kernels, const float* x, std::int64_t m,
                 std::span<const LinearJob> jobs);

}  // namespace spear
