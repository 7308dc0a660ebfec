#include "eval/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "eval/row_scores.h"

namespace spear {
namespace {

constexpr std::int64_t kRowsPerChunk = 256;  // 50 MB of logits for a vocabulary of 49,152, twice with a reference

std::span<const float> rows_of(const FinalStates& states, std::int64_t first, std::int64_t count) {
  return std::span(states.hidden)
      .subspan(static_cast<std::size_t>(first * states.hidden_size),
               static_cast<std::size_t>(count * states.hidden_size));
}

void require_states_fit(const FinalStates& states, const TextWindows& windows, const char* whose) {
  const std::int64_t expected = windows.windows * windows.context * states.hidden_size;
  if (states.hidden_size < 1 || !states.head || static_cast<std::int64_t>(states.hidden.size()) != expected) {
    throw failed(fmt::format("the {}'s hidden states are not those of {} windows of {} tokens", whose, windows.windows,
                             windows.context));
  }
}

/// Scores windows one by one into an EvalResult.
class Scorer {
 public:
  Scorer(const TextWindows& windows, std::int64_t vocab_size, const FinalStates* reference, const EvalOptions& options)
      : windows_(windows), vocab_size_(vocab_size), reference_(reference), options_(options) {
    if (windows.windows < 1 || windows.context < 2) throw usage_error("nothing to evaluate", "--windows, --context");
    const auto largest = std::minmax_element(windows.tokens.begin(), windows.tokens.end());
    if (*largest.first < 0 || *largest.second >= vocab_size) {
      throw bad_input(fmt::format("a token id of the text is outside the vocabulary of {}", vocab_size), {},
                      "use the tokenizer that belongs to the model");
    }
    if (reference != nullptr) {
      require_states_fit(*reference, windows, "reference");
      if (reference->vocab_size != vocab_size) {
        throw bad_input(fmt::format("the model has {} tokens in its vocabulary, the reference {}", vocab_size,
                                    reference->vocab_size),
                        {}, "give the model's own full-precision parent as --reference");
      }
    }
    result_.windows = windows.windows;
    result_.context = windows.context;
    result_.tokens = windows.predictions();
  }

  /// hidden: [context, hidden_size] of window `index`; `same` when it is the reference's own.
  void score(std::int64_t index, std::span<const float> hidden, const Head& head, bool same) {
    const std::int64_t rows = windows_.context - 1;  // the last token predicts nothing in here
    const std::size_t hidden_size = hidden.size() / static_cast<std::size_t>(windows_.context);
    scores_.assign(static_cast<std::size_t>(rows), {});
    for (std::int64_t begin = 0; begin < rows; begin += kRowsPerChunk) {
      const std::int64_t count = std::min(kRowsPerChunk, rows - begin);
      const auto chunk =
          hidden.subspan(static_cast<std::size_t>(begin) * hidden_size, static_cast<std::size_t>(count) * hidden_size);
      head(chunk, logits_of(model_logits_, count));
      if (reference_ != nullptr && !same) {
        reference_->head(rows_of(*reference_, index * windows_.context + begin, count),
                         logits_of(reference_logits_, count));
      }
      score_chunk(index, begin, count, same);
    }
    add_window(index);
  }

  EvalResult finish() {
    const auto count = static_cast<double>(windows_.context - 1);
    const auto mean = [count](const std::vector<double>& sums) {
      return [&sums, count](std::span<const std::int32_t> indices) {
        double sum = 0;
        for (const std::int32_t i : indices) sum += sums[static_cast<std::size_t>(i)];
        return sum / (count * static_cast<double>(indices.size()));
      };
    };
    const auto mean_nll = mean(result_.window_nll);
    result_.perplexity = bootstrap(
        result_.windows, [&](auto indices) { return std::exp(mean_nll(indices)); }, options_.bootstrap);
    if (reference_ != nullptr) {
      result_.kl = bootstrap(result_.windows, mean(result_.window_kl), options_.bootstrap);
      result_.top1_agreement = bootstrap(result_.windows, mean(result_.window_agree), options_.bootstrap);
    }
    return std::move(result_);
  }

 private:
  struct TokenScore {
    double nll = 0, kl = 0;
    bool agree = true;
  };

  std::span<float> logits_of(std::vector<float>& buffer, std::int64_t rows) const {
    buffer.resize(static_cast<std::size_t>(std::min(kRowsPerChunk, windows_.context - 1) * vocab_size_));
    return std::span(buffer).first(static_cast<std::size_t>(rows * vocab_size_));
  }

  void score_chunk(std::int64_t index, std::int64_t begin, std::int64_t count, bool same) {
    const auto targets = windows_.window(index).subspan(static_cast<std::size_t>(begin) + 1);
    const auto vocab = static_cast<std::size_t>(vocab_size_);
    const auto body = [&](std::int64_t first, std::int64_t last) {
      for (auto row = static_cast<std::size_t>(first); row < static_cast<std::size_t>(last); ++row) {
        const auto logits = std::span<const float>(model_logits_).subspan(row * vocab, vocab);
        TokenScore& score = scores_[static_cast<std::size_t>(begin) + row];
        const double target = static_cast<double>(logits[static_cast<std::size_t>(targets[row])]);
        if (reference_ == nullptr || same) {
          score.nll = score_row(logits).log_sum_exp - target;
        } else {
          const auto divergence =
              compare_rows(std::span<const float>(reference_logits_).subspan(row * vocab, vocab), logits);
          score = {divergence.model.log_sum_exp - target, divergence.kl,
                   divergence.model.top == divergence.reference.top};
        }
      }
    };
    if (options_.pool != nullptr) {
      options_.pool->parallel_for(count, 1, body);
    } else {
      body(0, count);
    }
  }

  void add_window(std::int64_t index) {
    double nll = 0, kl = 0, agree = 0;
    for (const TokenScore& score : scores_) {
      nll += score.nll;
      kl += score.kl;
      agree += score.agree ? 1 : 0;
    }
    if (!std::isfinite(nll) || !std::isfinite(kl)) {
      throw failed("the logits hold NaN or infinity", fmt::format("window {}", index),
                   "check the weights: `spear inspect` finds values that are not finite");
    }
    result_.window_nll.push_back(nll);
    if (reference_ != nullptr) {
      result_.window_kl.push_back(kl);
      result_.window_agree.push_back(agree);
    }
    if (!options_.per_token) return;
    for (const TokenScore& score : scores_) {
      result_.token_nll.push_back(static_cast<float>(score.nll));
      if (reference_ != nullptr) result_.token_kl.push_back(static_cast<float>(score.kl));
    }
  }

  const TextWindows& windows_;
  std::int64_t vocab_size_;
  const FinalStates* reference_;
  const EvalOptions& options_;
  std::vector<float> model_logits_, reference_logits_;
  std::vector<TokenScore> scores_;
  EvalResult result_;
};

/// Calls use(first window, windows, hidden states) for batches of windows.
template <class Use>
void run_windows(ForwardModel& model, const TextWindows& windows, const EvalOptions& options, const Use& use) {
  Progress progress(options.label, windows.windows, /*quiet=*/options.label.empty());
  const std::int64_t step = std::max<std::int64_t>(options.windows_per_batch, 1);
  for (std::int64_t first = 0; first < windows.windows; first += step) {
    throw_if_interrupted();
    const std::int64_t count = std::min(step, windows.windows - first);
    const auto tokens = std::span(windows.tokens)
                            .subspan(static_cast<std::size_t>(first * windows.context),
                                     static_cast<std::size_t>(count * windows.context));
    use(first, count, model.hidden_states({tokens, count, windows.context}, nullptr));
    progress.update(first + count);
  }
}

}  // namespace

FinalStates final_states(ForwardModel& model, const TextWindows& windows, const EvalOptions& options) {
  FinalStates states{model.config().hidden_size, model.config().vocab_size, {}, [&model](auto hidden, auto out) {
                       model.logits(hidden, out);
                     }};
  states.hidden.reserve(static_cast<std::size_t>(windows.windows * windows.context * states.hidden_size));
  run_windows(model, windows, options, [&](std::int64_t, std::int64_t, const std::vector<float>& hidden) {
    states.hidden.insert(states.hidden.end(), hidden.begin(), hidden.end());
  });
  return states;
}

EvalResult evaluate(ForwardModel& model, const TextWindows& windows, const FinalStates* reference,
                    const EvalOptions& options) {
  Scorer scorer(windows, model.config().vocab_size, reference, options);
  const Head head = [&model](auto hidden, auto out) { model.logits(hidden, out); };
  run_windows(model, windows, options, [&](std::int64_t first, std::int64_t count, const std::vector<float>& hidden) {
    const std::size_t size = hidden.size() / static_cast<std::size_t>(count);
    for (std::int64_t i = 0; i < count; ++i) {
      scorer.score(first + i, std::span(hidden).subspan(static_cast<std::size_t>(i) * size, size), head, false);
    }
  });
  return scorer.finish();
}

EvalResult evaluate(const FinalStates& states, const TextWindows& windows, const FinalStates* reference,
                    const EvalOptions& options) {
  Scorer scorer(windows, states.vocab_size, reference, options);
  require_states_fit(states, windows, "model");
  Progress progress(options.label, windows.windows, /*quiet=*/options.label.empty());
  for (std::int64_t index = 0; index < windows.windows; ++index) {
    throw_if_interrupted();
    scorer.score(index, rows_of(states, index * windows.context, windows.context), states.head, reference == &states);
    progress.update(index + 1);
  }
  return scorer.finish();
}

}  // namespace spear
