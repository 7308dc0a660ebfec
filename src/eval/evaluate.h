// Perplexity, KL(reference || model) and top-1 agreement over the windows of a text, in one pass.
// The reference's final hidden states are computed once and serve any number of candidates; logits live 512 rows at a
// time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "eval/statistics.h"
#include "eval/text_windows.h"
#include "model/forward_model.h"

namespace spear {

/// hidden [rows, hidden_size] -> out [rows, vocab_size], as ForwardModel::logits.
using Head = std::function<void(std::span<const float> hidden, std::span<float> out)>;

/// Final normalized hidden states of every token of some windows, and the head that turns them into logits.
struct FinalStates {
  std::int64_t hidden_size = 0, vocab_size = 0;
  std::vector<float> hidden;  ///< [windows * context, hidden_size]
  Head head;
};

struct EvalOptions {
  ThreadPool* pool = nullptr;          ///< for the vocabulary loops; null: the calling thread alone
  std::int64_t windows_per_batch = 1;  ///< windows per forward pass
  bool per_token = false;              ///< keep token_nll and token_kl
  BootstrapOptions bootstrap{};
  std::string label{};  ///< of the progress line; empty: no progress
};

/// Averages are per predicted token (context - 1 per window); sums are kept per window, the unit of the bootstrap.
struct EvalResult {
  Interval perplexity;
  std::optional<Interval> kl, top1_agreement;  ///< present when there is a reference
  std::int64_t tokens = 0;                     ///< predicted tokens
  std::int64_t windows = 0, context = 0;

  std::vector<double> window_nll;    ///< [windows] sums in nats
  std::vector<double> window_kl;     ///< [windows] sums in nats, empty without a reference
  std::vector<double> window_agree;  ///< [windows] counts, empty without a reference
  std::vector<float> token_nll;      ///< [windows, context - 1] with per_token
  std::vector<float> token_kl;       ///< [windows, context - 1] with per_token and a reference
};

/// Runs the model over all windows. The head refers to `model`, which must outlive the result; set another head to
/// let it go.
FinalStates final_states(ForwardModel& model, const TextWindows& windows, const EvalOptions& options = {});

/// `reference` may be null: perplexity only. Throws Error(failed) naming the window when logits are not finite or the
/// reference's states do not fit the windows or the vocabulary.
EvalResult evaluate(ForwardModel& model, const TextWindows& windows, const FinalStates* reference,
                    const EvalOptions& options = {});

/// The same from states at hand: the reference itself (reference == &states), or a candidate of the diagnosis.
EvalResult evaluate(const FinalStates& states, const TextWindows& windows, const FinalStates* reference,
                    const EvalOptions& options = {});

}  // namespace spear
