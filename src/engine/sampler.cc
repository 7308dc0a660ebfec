#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace spear {

void SamplingOptions::validate() const {
  const auto require = [](bool ok, const char* option, const char* range, double value) {
    if (!ok) throw usage_error(fmt::format("{} is outside {}", value, range), option, "choose a value in this range");
  };
  require(temperature >= 0 && std::isfinite(temperature), "--temperature", "0 and above", temperature);
  require(top_k >= 0, "--top-k", "0 and above", static_cast<double>(top_k));
  require(top_p > 0 && top_p <= 1, "--top-p", "(0, 1]", top_p);
  require(min_p >= 0 && min_p <= 1, "--min-p", "[0, 1]", min_p);
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) { options_.validate(); }

std::int32_t Sampler::next(std::span<const float> logits) {
  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < INFINITY)) {
      throw failed(fmt::format("the logit of token {} is {}", i, logits[i]), "",
                   "the weights are damaged; get them again");
    }
    if (logits[i] > -INFINITY) candidates_.push_back({logits[i], static_cast<std::int32_t>(i)});
  }
  if (candidates_.empty()) throw failed("no token has a finite logit");
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  if (options_.temperature == 0) return std::min_element(candidates_.begin(), candidates_.end(), likelier)->token;

  if (options_.top_k > 0 && options_.top_k < static_cast<std::int64_t>(candidates_.size())) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(), likelier);
    candidates_.resize(static_cast<std::size_t>(options_.top_k));
  }
  std::sort(candidates_.begin(), candidates_.end(), likelier);

  probabilities_.clear();
  double sum = 0;
  for (const Candidate& candidate : candidates_) {
    probabilities_.push_back(
        std::exp((static_cast<double>(candidate.logit) - candidates_.front().logit) / options_.temperature));
    sum += probabilities_.back();
  }
  // Sorted: each filter keeps a prefix, and never less than the first.
  std::size_t kept = 0;
  double reached = 0;
  while (kept < probabilities_.size() && (kept == 0 || (reached < options_.top_p * sum &&
                                                        probabilities_[kept] >= options_.min_p * probabilities_[0]))) {
    reached += probabilities_[kept++];
  }
  double rest = random_.uniform() * reached;
  for (std::size_t i = 0; i < kept; ++i) {
    rest -= probabilities_[i];
    if (rest < 0) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

}  // namespace spear
