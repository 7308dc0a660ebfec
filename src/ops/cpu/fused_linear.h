// Several linears on one input, their compensators included, as one threaded operation.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/fusion_table.h"
#include "ops/cpu/packed_matrix.h"
#include "ops/cpu_model.h"

namespace spear {

/// y [m, weight rows] = x Wᵀ, plus B (g(z) ⊙ z) when there is a compensator; `input` is its A's index in `inputs`.
struct FusedJob {
  const PackedView* weight;
  float* y;
  const PackedCompensator* compensator = nullptr;
  std::size_t input = 0;
};

/// x [m, cols], contiguous. With `activate`, each row becomes activate(x, other) first, in place: the input of down_proj
/// is made where it is quantized.
struct FusedInput {
  float* x;
  std::int64_t m;
  void (*activate)(float* x, const float* other, std::int64_t n) = nullptr;
  const float* other = nullptr;
};

/// Makes every operation use one way of fusing, and adds up how long those of a shape took.
struct FusionProbe {
  struct Sum {
    double us = 0;
    std::int64_t count = 0;
  };
  Fusion fusion = Fusion::automatic;
  std::map<FusionShape, Sum> sums;
};

/// Buffers that grow to the largest step and stay: no allocation on the hot path.
class FusedLinear {
 public:
  FusedLinear(const PackedKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  /// cols of x as every weight's and every input's; `inputs` are the distinct A's.
  void run(Activations activations, const FusedInput& x, std::span<const FusedJob> jobs,
           std::span<const PackedView* const> inputs, Fusion fusion = Fusion::automatic);
  void run(Activations activations, const float* x, std::int64_t m, std::span<const FusedJob> jobs,
           std::span<const PackedView* const> inputs, Fusion fusion = Fusion::automatic) {
    run(activations, FusedInput{const_cast<float*>(x), m}, jobs, inputs, fusion);  // not written without `activate`
  }

  /// What `automatic` means; an empty table, as at first: late below FusionTable::kLateTokens tokens, early from there on.
  void set_table(FusionTable table) { table_ = std::move(table); }
  void set_probe(FusionProbe* probe) { probe_ = probe; }  ///< nullptr: none

 private:
  struct Range {
    std::int64_t begin, end;
  };
  void prepare(Activations activations, std::int64_t m, std::span<const FusedJob> jobs,
               std::span<const PackedView* const> inputs);
  void run_as(Fusion fusion, const FusedInput& x, std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs);
  void quantize(const FusedInput& x, std::int64_t cols, Range tokens);
  void run_late(const FusedInput& x, std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs);
  void run_early(const FusedInput& x, std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs);
  void run_separate(const FusedInput& x, std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs);
  void multiply_blocks(std::int64_t m, std::span<const FusedJob> jobs, int thread, bool correct);
  void weigh(std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs, Range tokens, float* weighted);

  const PackedKernels& kernels_;
  ThreadPool& pool_;
  FusionTable table_;
  FusionProbe* probe_ = nullptr;
  Rendezvous z_ready_;
  std::atomic<std::int64_t> next_unit_{0};
  PackedActivations x_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scales_, z_, weighted_;
  std::vector<std::int32_t> sums_, halves_, quarters_;
  std::vector<std::uint16_t> bf16_;
  std::vector<std::int64_t> z_offsets_, weighted_offsets_;  ///< per input, per job; in floats
};

}  // namespace spear
