// Picks the next token from logits. The same seed and logits give the same tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"

namespace spear {

struct SamplingOptions {
  double temperature = 0.0;  ///< 0: greedy; the filters below are then not used
  std::int64_t top_k = 0;    ///< keep the k most likely tokens; 0: all
  double top_p = 1.0;        ///< keep the smallest set whose probability reaches top_p
  double min_p = 0.0;        ///< keep tokens at least min_p times as likely as the most likely one
  std::uint64_t seed = 0;

  /// Throws Error(usage) naming the option that is out of range.
  void validate() const;
};

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);

  /// logits: [vocab_size] -> token id. Filters apply in the order top-k, top-p, min-p to the distribution at
  /// `temperature`. Ties go to the lower id. Throws Error(failed) when a logit is NaN or +infinity, or all are
  /// -infinity.
  std::int32_t next(std::span<const float> logits);

 private:
  struct Candidate {
    float logit;
    std::int32_t token;
  };

  SamplingOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;
  std::vector<double> probabilities_;
};

}  // namespace spear
