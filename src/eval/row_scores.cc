#include "eval/row_scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#define SPEAR_INLINE inline __attribute__((always_inline))

namespace spear {
namespace {

constexpr std::size_t kBlock = 1024;  // logits summed in float32, then carried over to float64

struct PairSums {
  double reference = 0, model = 0;  ///< of exp(logit - largest)
  double weighted = 0;  ///< of exp(reference - its largest) (reference - model), both relative to their largest
};

struct Loops {
  float (*largest_of)(const float*, std::size_t);
  double (*sum_exp)(const float*, std::size_t, float);
  PairSums (*sum_pair)(const float*, const float*, std::size_t, float, float);
};

namespace baseline {
constexpr std::size_t kLanes = 4;
#include "eval/row_scores_loops.inc"
}  // namespace baseline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPEAR_X86_LOOPS
namespace avx2 {
#pragma GCC push_options
#pragma GCC target("avx2,fma")
constexpr std::size_t kLanes = 8;
#include "eval/row_scores_loops.inc"
#pragma GCC pop_options
}  // namespace avx2

namespace avx512 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,fma,prefer-vector-width=512")
constexpr std::size_t kLanes = 16;
#include "eval/row_scores_loops.inc"
#pragma GCC pop_options
}  // namespace avx512
#endif

Loops best_loops() {
#ifdef SPEAR_X86_LOOPS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    return {avx512::largest_of, avx512::sum_exp, avx512::sum_pair};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {avx2::largest_of, avx2::sum_exp, avx2::sum_pair};
  }
#endif
  return {baseline::largest_of, baseline::sum_exp, baseline::sum_pair};
}

const Loops& loops() {
  static const Loops best = best_loops();
  return best;
}

std::int32_t index_of(std::span<const float> row, float largest) {
  const auto place = std::find(row.begin(), row.end(), largest);
  return place == row.end() ? 0 : static_cast<std::int32_t>(place - row.begin());
}

}  // namespace

RowScore score_row(std::span<const float> logits) {
  const float largest = loops().largest_of(logits.data(), logits.size());
  return {static_cast<double>(largest) + std::log(loops().sum_exp(logits.data(), logits.size(), largest)),
          index_of(logits, largest)};
}

RowDivergence compare_rows(std::span<const float> reference, std::span<const float> model) {
  const std::size_t size = std::min(reference.size(), model.size());
  const float largest_reference = loops().largest_of(reference.data(), size);
  const float largest_model = loops().largest_of(model.data(), size);
  const PairSums sums = loops().sum_pair(reference.data(), model.data(), size, largest_reference, largest_model);
  const double log_p = std::log(sums.reference), log_q = std::log(sums.model);
  return {{static_cast<double>(largest_reference) + log_p, index_of(reference.first(size), largest_reference)},
          {static_cast<double>(largest_model) + log_q, index_of(model.first(size), largest_model)},
          sums.weighted / sums.reference - log_p + log_q};
}

}  // namespace spear
