// Several linears on one input, their compensators included, as one threaded operation.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
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

/// How a compensator's correction reaches y; the bits are the same.
enum class Fusion {
  automatic,
  late,   ///< z beside y, one thread each; B added to y once it is there: hides z's latency, for few tokens
  early,  ///< z of a thread's share of tokens first, B in the registers of y's tiles: no second pass over y
};

/// Buffers that grow to the largest step and stay: no allocation on the hot path.
class FusedLinear {
 public:
  FusedLinear(const PackedKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  /// x: [m, cols], contiguous, cols as every weight's and every input's; `inputs` are the distinct A's.
  void run(Activations activations, const float* x, std::int64_t m, std::span<const FusedJob> jobs,
           std::span<const PackedView* const> inputs, Fusion fusion = Fusion::automatic);

  /// Tokens below which `automatic` means `late`.
  static constexpr std::int64_t kLateTokens = 8;

 private:
  struct Range {
    std::int64_t begin, end;
  };
  void prepare(Activations activations, std::int64_t m, std::span<const FusedJob> jobs,
               std::span<const PackedView* const> inputs);
  void run_late(std::int64_t m, std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs);
  void run_early(const float* x, std::int64_t m, std::span<const FusedJob> jobs,
                 std::span<const PackedView* const> inputs);
  void weigh(std::span<const FusedJob> jobs, std::span<const PackedView* const> inputs, Range tokens, float* weighted);

  const PackedKernels& kernels_;
  ThreadPool& pool_;
  Rendezvous z_ready_;
  PackedActivations x_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scales_, z_, weighted_;
  std::vector<std::int32_t> sums_, halves_;
  std::vector<std::uint16_t> bf16_;
  std::vector<std::int64_t> z_offsets_, weighted_offsets_;  ///< per input, per job; in floats
};

}  // namespace spear
