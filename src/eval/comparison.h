// What evaluations say about each other: gaps recovered, paired differences, tokens that changed most; and their JSON.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/evaluate.h"

namespace spear {

/// Share of the gap between reference and baseline that the candidate closes: 0 is the baseline, 1 the reference.
struct GapRecovered {
  Interval perplexity;      ///< (ppl_q - ppl_c) / (ppl_q - ppl_fp)
  Interval log_perplexity;  ///< the same on mean NLL
  Interval kl;              ///< (KL_q - KL_c) / KL_q
};

/// All three evaluated on the same windows (Error(failed) if not); baseline and candidate with KL. Intervals are paired
/// over windows.
GapRecovered gap_recovered(const EvalResult& reference, const EvalResult& baseline, const EvalResult& candidate,
                           const BootstrapOptions& options = {});

/// Candidate minus baseline, paired over windows. Negative is better, except for top-1 agreement.
struct PairedDifference {
  Interval perplexity, log_perplexity;
  std::optional<Interval> kl, top1_agreement;
};
PairedDifference paired_difference(const EvalResult& candidate, const EvalResult& baseline,
                                   const BootstrapOptions& options = {});

/// A predicted token whose probability differs between two models.
struct TokenChange {
  std::int64_t window = 0, position = 0;  ///< the token at `position` of the window, predicted from those before
  std::int32_t token = 0;
  double before = 0, after = 0;  ///< log-probabilities
};
struct TokenChanges {
  std::vector<TokenChange> gained, lost;  ///< largest change first
};
/// Both evaluated with per_token on `windows`.
TokenChanges tokens_changed_most(const TextWindows& windows, const EvalResult& before, const EvalResult& after,
                                 std::int64_t count);

/// Text of token ids, as the tokenizer decodes it.
using Decode = std::function<std::string(std::span<const std::int32_t>)>;

/// The manifest's "tokens" (docs/checkpoint.md); `context_tokens` tokens of text stand before each token.
nlohmann::json to_json(const TokenChanges& changes, const TextWindows& windows, const Decode& decode,
                       std::int64_t context_tokens = 24);

/// What the model takes, for the report of an evaluation.
struct EvalBytes {
  std::int64_t weights = 0, compensators = 0;
};

nlohmann::json to_json(const Interval& interval);  ///< {"value","low","high"}; null for what is not finite
nlohmann::json to_json(const GapRecovered& gap);
nlohmann::json to_json(const PairedDifference& difference);
/// A row of the manifest's results: {"perplexity","kl","top1_agreement","tokens","windows","context"}, and the sums per
/// window ("window_nll", "window_kl"), so that other programs can compare models in pairs.
nlohmann::json to_json(const EvalResult& result);
/// Schema spear.eval/1 (design §5); `tasks` as made by tasks_json, or null.
nlohmann::json eval_document(const EvalResult& result, const std::optional<EvalBytes>& bytes,
                             const nlohmann::json& tasks = nullptr);

}  // namespace spear
