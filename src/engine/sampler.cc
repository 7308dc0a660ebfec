#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "engine/sampler_loops.h"

namespace spear {
namespace {

constexpr std::int64_t kHeapCandidates = 1024;  // beyond, partitioning all tokens is faster than a heap of them
constexpr int kTopPPasses = 6;                  // each halves the candidates that have to be sorted
constexpr float kSmallestWeight = 1e-37F;
constexpr std::int64_t kMostLogprobs = 20;
constexpr std::int64_t kDrawBlock = 1024;
constexpr std::int64_t kScanBlock = 256;

std::int64_t size_of(std::span<const float> logits) { return static_cast<std::int64_t>(logits.size()); }

}  // namespace

void SamplingOptions::validate() const {
  const auto require = [](bool ok, const char* option, const char* range, double value) {
    if (!ok) throw usage_error(fmt::format("{} is outside {}", value, range), option, "choose a value in this range");
  };
  require(temperature >= 0 && std::isfinite(temperature), "--temperature", "0 and above", temperature);
  require(top_k >= 0, "--top-k", "0 and above", static_cast<double>(top_k));
  require(top_p > 0 && top_p <= 1, "--top-p", "(0, 1]", top_p);
  require(min_p >= 0 && min_p <= 1, "--min-p", "[0, 1]", min_p);
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty), "--repetition-penalty", "above 0",
          repetition_penalty);
  require(std::fabs(frequency_penalty) <= 2, "--frequency-penalty", "[-2, 2]", frequency_penalty);
  require(std::fabs(presence_penalty) <= 2, "--presence-penalty", "[-2, 2]", presence_penalty);
  require(logprobs >= -1 && logprobs <= kMostLogprobs, "--logprobs", "[0, 20]", static_cast<double>(logprobs));
  for (const auto& [token, bias] : logit_bias) {
    require(token >= 0, "--logit-bias", "token ids", token);
    require(std::fabs(bias) <= 100, "--logit-bias", "[-100, 100]", bias);
  }
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  options_.validate();
  if (options_.logprobs >= 0) logprobs_.reserve(static_cast<std::size_t>(options_.logprobs) + 1);
}

void Sampler::add_prompt(std::span<const std::int32_t> prompt, std::int64_t vocab_size) {
  for (const std::int32_t token : prompt) {
    if (token < 0 || token >= vocab_size) {
      throw bad_input(fmt::format("token {} is outside the vocabulary of {}", token, vocab_size));
    }
    if (options_.has_penalties()) count(token, false, vocab_size);
  }
}

namespace {

/// Throws Error(failed) when a logit is NaN or +infinity.
float checked_largest(std::span<const float> logits) {
  if (logits.empty()) throw failed("there are no logits");
  const float largest = largest_logit(logits.data(), size_of(logits));
  if (std::isnan(largest)) {
    const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < INFINITY); });
    throw failed(fmt::format("the logit of token {} is {}", bad - logits.begin(), *bad), "",
                 "the weights are damaged; get them again");
  }
  return largest;
}

}  // namespace

std::int32_t Sampler::next(std::span<const float> logits, TokenConstraint* constraint) {
  const float raw_largest = checked_largest(logits);
  const auto changed = adjusted(logits, constraint);
  const float largest = changed.data() == logits.data() ? raw_largest : largest_logit(changed.data(), size_of(changed));
  if (largest == -INFINITY) throw failed("no token has a finite logit");
  const std::int32_t token =
      options_.temperature == 0
          ? static_cast<std::int32_t>(std::find(changed.begin(), changed.end(), largest) - changed.begin())
          : draw(changed, largest);
  if (options_.has_penalties()) count(token, true, size_of(logits));
  if (constraint != nullptr) constraint->accept(token);
  logprobs_.clear();
  if (options_.logprobs >= 0) {
    logprobs_.push_back({token, 0});
    find_logprobs(logits, raw_largest);
  }
  return token;
}

std::span<const TokenLogprob> Sampler::score(std::span<const float> logits, std::int32_t token) {
  const float largest = checked_largest(logits);
  logprobs_.assign(1, {token, 0});
  find_logprobs(logits, largest);
  return logprobs_;
}

/// The logits after penalties, bias and constraint: a copy, unless there are none.
std::span<const float> Sampler::adjusted(std::span<const float> logits, TokenConstraint* constraint) {
  if (seen_.empty() && options_.logit_bias.empty() && constraint == nullptr) return logits;
  adjusted_.assign(logits.begin(), logits.end());
  penalize(adjusted_);
  for (const auto& [token, bias] : options_.logit_bias) {
    if (token >= size_of(logits)) {
      throw bad_input(fmt::format("token {} is outside the vocabulary of {}", token, logits.size()), "logit bias");
    }
    adjusted_[static_cast<std::size_t>(token)] += bias;
  }
  if (constraint != nullptr) constraint->mask(adjusted_);
  return adjusted_;
}

void Sampler::penalize(std::span<float> logits) {
  const auto repetition = static_cast<float>(options_.repetition_penalty);
  for (const std::int32_t token : seen_) {
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    const std::int32_t times = counts_[static_cast<std::size_t>(token)];
    if (times > 0) logit -= static_cast<float>(options_.frequency_penalty * times + options_.presence_penalty);
  }
}

void Sampler::count(std::int32_t token, bool in_output, std::int64_t vocab_size) {
  if (counts_.empty()) {
    counts_.resize(static_cast<std::size_t>(vocab_size));
    seen_.reserve(static_cast<std::size_t>(vocab_size));
  }
  std::int32_t& times = counts_[static_cast<std::size_t>(token)];
  if (times == 0) seen_.push_back(token);
  if (in_output) {
    times = std::max(times, 0) + 1;
  } else if (times == 0) {
    times = -1;
  }
}

std::int32_t Sampler::draw(std::span<const float> logits, float largest) {
  const auto scale = static_cast<float>(std::min(1.0 / options_.temperature, 1e30));  // 0 * infinity is no weight
  const std::int64_t n = size_of(logits);
  if (options_.top_k > 0 && options_.top_k < n) {
    keep_top_k(logits, options_.top_k);
    std::sort(candidates_.begin(), candidates_.end(), likelier);
    double sum = 0;
    for (Candidate& c : candidates_) {
      c.weight = std::exp((c.logit - largest) * scale);
      sum += c.weight;
    }
    std::size_t kept = smallest_prefix(options_.top_p * sum);
    while (kept > 1 && candidates_[kept - 1].weight < options_.min_p) --kept;
    return draw_candidate(kept);
  }
  weights_.resize(logits.size());
  const double sum = exponentials(logits.data(), n, largest, scale, weights_.data());
  if (options_.top_p == 1) return draw_weight(options_.min_p);
  return draw_weight(std::max(keep_top_p(logits, options_.top_p * sum), options_.min_p));
}

void Sampler::keep_top_k(std::span<const float> logits, std::int64_t k) {
  candidates_.clear();
  if (k > kHeapCandidates) {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] > -INFINITY) candidates_.push_back({logits[i], 0, static_cast<std::int32_t>(i)});
    }
    if (static_cast<std::int64_t>(candidates_.size()) <= k) return;
    std::nth_element(candidates_.begin(), candidates_.begin() + k, candidates_.end(), likelier);
    candidates_.resize(static_cast<std::size_t>(k));
    return;
  }
  // A heap whose front is the least likely; most blocks hold nothing that could enter it.
  float lowest = -INFINITY;
  for (std::int64_t begin = 0; begin < size_of(logits); begin += kScanBlock) {
    const std::int64_t end = std::min(begin + kScanBlock, size_of(logits));
    if (largest_logit(logits.data() + begin, end - begin) <= lowest) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      const float logit = logits[static_cast<std::size_t>(i)];
      if (logit <= lowest) continue;  // an equal one has the higher id
      if (static_cast<std::int64_t>(candidates_.size()) == k) {
        std::pop_heap(candidates_.begin(), candidates_.end(), likelier);
        candidates_.pop_back();
      }
      candidates_.push_back({logit, 0, static_cast<std::int32_t>(i)});
      std::push_heap(candidates_.begin(), candidates_.end(), likelier);
      if (static_cast<std::int64_t>(candidates_.size()) == k) lowest = candidates_.front().logit;
    }
  }
}

/// The lowest weight of the smallest set with that mass; weights of as much that are not in the set become 0. Bisects
/// the bit patterns, which are in the order of the weights, until the few candidates between can be sorted.
double Sampler::keep_top_p(std::span<const float> logits, double mass) {
  const std::int64_t n = size_of(logits);
  const auto bits = [](float f) { return std::bit_cast<std::uint32_t>(f); };
  std::uint32_t low = 0, high = bits(1.0F) + 1;  // the weights from low on have the mass, those from high on do not
  double above = 0;                              // mass from high on
  const auto divide = [&](std::uint32_t middle) {
    const double found = mass_from(weights_.data(), n, std::bit_cast<float>(middle));
    if (found >= mass) {
      low = middle;
    } else {
      high = middle;
      above = found;
    }
  };
  for (const float coarse : {0.1F, 1e-2F, 1e-3F, 1e-5F, 1e-8F}) {
    if (low == 0) divide(bits(coarse));
  }
  for (int pass = 0; pass < kTopPPasses && high - low > 1; ++pass) divide(low + (high - low) / 2);
  candidates_.clear();
  const float from = std::max(std::bit_cast<float>(low), kSmallestWeight), to = std::bit_cast<float>(high);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (weights_[i] >= from && weights_[i] < to) {
      candidates_.push_back({logits[i], weights_[i], static_cast<std::int32_t>(i)});
    }
  }
  if (candidates_.empty()) return to;  // only rounding put them apart
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  std::size_t kept = smallest_prefix(mass - above);
  const float lowest = candidates_[kept - 1].weight;
  for (; kept < candidates_.size(); ++kept) weights_[static_cast<std::size_t>(candidates_[kept].token)] = 0;
  return lowest;
}

/// Length of the shortest prefix of the sorted candidates with that mass: all, if there is less, and one at least.
std::size_t Sampler::smallest_prefix(double mass) const {
  std::size_t kept = 0;
  while (kept < candidates_.size() && (mass > 0 || kept == 0)) mass -= candidates_[kept++].weight;
  return kept;
}

std::int32_t Sampler::draw_candidate(std::size_t kept) {
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) sum += candidates_[i].weight;
  double rest = random_.uniform() * sum;
  for (std::size_t i = 0; i < kept; ++i) {
    rest -= candidates_[i].weight;
    if (rest < 0) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

/// From all weights of at least `floor` times the largest, which is 1, in the order of the vocabulary.
std::int32_t Sampler::draw_weight(double floor) {
  const auto lowest = std::max(static_cast<float>(floor), kSmallestWeight);
  const auto n = static_cast<std::int64_t>(weights_.size());
  double rest = random_.uniform() * mass_from(weights_.data(), n, lowest);
  std::int64_t block = 0;
  for (std::int64_t begin = 0; begin < n; begin += kDrawBlock) {
    const std::int64_t end = std::min(begin + kDrawBlock, n);
    const double mass = mass_from(weights_.data() + begin, end - begin, lowest);
    if (mass == 0) continue;
    if (rest >= mass) {
      rest -= mass;
      block = begin;
      continue;
    }
    return pick_in_block(begin, end, lowest, rest);
  }
  // Rounding left a sliver behind the end: it belongs to the last block that has any weight.
  return pick_in_block(block, std::min(block + kDrawBlock, n), lowest, INFINITY);
}

/// The token at which the weights of [begin, end) sum to more than `rest`, or the last one that counts.
std::int32_t Sampler::pick_in_block(std::int64_t begin, std::int64_t end, float lowest, double rest) const {
  std::int64_t last = begin;
  for (std::int64_t i = begin; i < end && rest >= 0; ++i) {
    const float weight = weights_[static_cast<std::size_t>(i)];
    if (weight < lowest) continue;
    last = i;
    rest -= weight;
  }
  return static_cast<std::int32_t>(last);
}

void Sampler::find_logprobs(std::span<const float> logits, float largest) {
  weights_.resize(logits.size());
  const double sum = exponentials(logits.data(), size_of(logits), largest, 1.0F, weights_.data());
  const double normalizer = largest + std::log(sum);
  const auto logprob = [&](std::int32_t token) {
    return static_cast<float>(logits[static_cast<std::size_t>(token)] - normalizer);
  };
  logprobs_.front().logprob = logprob(logprobs_.front().token);
  if (options_.logprobs <= 0) return;
  keep_top_k(logits, options_.logprobs);
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  for (const Candidate& candidate : candidates_) logprobs_.push_back({candidate.token, logprob(candidate.token)});
}

}  // namespace spear
