// Picks the next token from logits. The same seed and logits give the same tokens.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/random.h"
#include "engine/token_constraint.h"

namespace spear {

struct SamplingOptions {
  double temperature = 0.0;  ///< 0: greedy; top_k, top_p and min_p are then not used
  std::int64_t top_k = 0;    ///< keep the k most likely tokens; 0: all
  double top_p = 1.0;        ///< keep the smallest set whose probability reaches top_p
  double min_p = 0.0;        ///< keep tokens at least min_p times as likely as the most likely one
  std::uint64_t seed = 0;

  /// Logits of tokens that were in the prompt or the output: divided by it where positive, multiplied where negative.
  double repetition_penalty = 1.0;
  double frequency_penalty = 0.0;  ///< subtracted once per occurrence in the output, in [-2, 2]
  double presence_penalty = 0.0;   ///< subtracted once if the token is in the output, in [-2, 2]
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};  ///< (token, added to its logit), each in [-100, 100]

  /// Alternatives whose log-probabilities are wanted beside the chosen token's, in [0, 20]; -1: no log-probabilities.
  std::int64_t logprobs = -1;

  /// Throws Error(usage) naming the option that is out of range.
  void validate() const;
  bool has_penalties() const {
    return repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0;
  }
};

struct TokenLogprob {
  std::int32_t token;
  float logprob;
};

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);

  /// Tokens that the repetition penalty counts as seen. Throws Error(bad_input) for one outside the vocabulary.
  void add_prompt(std::span<const std::int32_t> prompt, std::int64_t vocab_size);

  /// logits: [vocab_size] -> token id, which joins the output that the penalties count. Penalties come first, then
  /// the bias, then top-k, top-p, min-p on the distribution at `temperature`. Ties go to the lower id. Throws
  /// Error(failed) when a logit is NaN or +infinity, or all are -infinity, Error(bad_input) when a biased token is
  /// outside the vocabulary.
  /// A constraint's mask is applied last; logprobs() do not know of it.
  std::int32_t next(std::span<const float> logits, TokenConstraint* constraint = nullptr);

  /// logprobs() of a token that was not drawn: one of the prompt. Changes nothing that next() depends on.
  std::span<const TokenLogprob> score(std::span<const float> logits, std::int32_t token);

  /// Of the last token, by the model itself (temperature 1, before penalties, bias and filters): the chosen token
  /// first, then the most likely ones in order. Empty without SamplingOptions::logprobs.
  std::span<const TokenLogprob> logprobs() const { return logprobs_; }

 private:
  struct Candidate {
    float logit;
    float weight;  ///< exp((logit - largest) / temperature)
    std::int32_t token;
  };

  std::span<const float> adjusted(std::span<const float> logits, TokenConstraint* constraint);
  void penalize(std::span<float> logits);
  void count(std::int32_t token, bool in_output, std::int64_t vocab_size);
  std::int32_t draw(std::span<const float> logits, float largest);
  void keep_top_k(std::span<const float> logits, std::int64_t k);
  double keep_top_p(std::span<const float> logits, double mass);
  std::size_t smallest_prefix(double mass) const;
  std::int32_t draw_candidate(std::size_t kept);
  std::int32_t draw_weight(double floor);
  std::int32_t pick_in_block(std::int64_t begin, std::int64_t end, float lowest, double rest) const;
  void find_logprobs(std::span<const float> logits, float largest);

  static bool likelier(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }

  SamplingOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;
  std::vector<float> weights_, adjusted_;
  std::vector<std::int32_t> seen_;    ///< distinct tokens of prompt and output
  std::vector<std::int32_t> counts_;  ///< [vocab_size] occurrences in the output, -1 for only in the prompt, or 0
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace spear
