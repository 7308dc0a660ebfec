#include "eval/tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "eval/comparison.h"
#include "eval/row_scores.h"

namespace spear {
namespace {

constexpr std::int64_t kRowsPerChunk = 256;

/// A context and one continuation as tokens; the last `scored` tokens are the continuation.
struct Sequence {
  std::vector<std::int32_t> tokens;
  std::size_t item = 0, option = 0;
  std::int64_t scored = 0;
};

struct SequenceScore {
  double log_likelihood = 0;
  bool greedy = true;  ///< every token of the continuation is the likeliest
};

/// Tokenized as one text, so that a merge over the border is the model's own; white space at the context's end goes to
/// the continuation.
Sequence tokenize(const Encode& encode, std::string context, const std::string& continuation,
                  const std::string& where) {
  const std::size_t end = context.find_last_not_of(" \t\n") + 1;
  std::string ending = context.substr(end) + continuation;
  if (end == context.size()) ending.insert(ending.begin(), ' ');
  context.resize(end);
  Sequence sequence;
  sequence.tokens = encode(context + ending);
  const auto prefix = static_cast<std::int64_t>(encode(context).size());
  sequence.scored = static_cast<std::int64_t>(sequence.tokens.size()) - prefix;
  if (prefix < 1 || sequence.scored < 1) throw bad_input("context or continuation has no tokens", where);
  return sequence;
}

std::vector<Sequence> tokenize_task(const ModelConfig& config, const Encode& encode, const Task& task) {
  std::vector<Sequence> sequences;
  for (std::size_t i = 0; i < task.items.size(); ++i) {
    const TaskItem& item = task.items[i];
    const std::string where = fmt::format("{}, item {}", task.name, i);
    for (std::size_t option = 0; option < item.options(); ++option) {
      const auto pick = [option](const std::vector<std::string>& texts) {
        return texts.at(texts.size() == 1 ? 0 : option);
      };
      Sequence sequence = tokenize(encode, pick(item.contexts), pick(item.continuations), where);
      const auto length = static_cast<std::int64_t>(sequence.tokens.size());
      if (config.max_position_embeddings > 0 && length > config.max_position_embeddings) {
        throw bad_input(fmt::format("{} tokens; the model has {} positions", length, config.max_position_embeddings),
                        where, "leave the item out: it would have to be cut");
      }
      const auto [least, most] = std::minmax_element(sequence.tokens.begin(), sequence.tokens.end());
      if (*least < 0 || *most >= config.vocab_size) {
        throw bad_input(fmt::format("a token id is outside the vocabulary of {}", config.vocab_size), where,
                        "use the tokenizer that belongs to the model");
      }
      sequence.item = i;
      sequence.option = option;
      sequences.push_back(std::move(sequence));
    }
  }
  return sequences;
}

/// Scores sequences of one length in one forward pass; only rows that predict a continuation meet the head.
class BatchScorer {
 public:
  explicit BatchScorer(ForwardModel& model) : model_(model) {}

  std::vector<SequenceScore> score(std::span<const Sequence> batch) {
    const auto length = static_cast<std::int64_t>(batch.front().tokens.size());
    std::vector<std::int32_t> tokens;
    for (const Sequence& sequence : batch) tokens.insert(tokens.end(), sequence.tokens.begin(), sequence.tokens.end());
    const auto hidden = model_.hidden_states({tokens, static_cast<std::int64_t>(batch.size()), length}, nullptr);

    scores_.assign(batch.size(), {});
    for (std::size_t i = 0; i < batch.size(); ++i) {
      for (std::int64_t position = length - batch[i].scored; position < length; ++position) {
        const std::int64_t row = static_cast<std::int64_t>(i) * length + position - 1;
        const auto size = static_cast<std::size_t>(model_.config().hidden_size);
        const auto begin = hidden.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row) * size);
        rows_.insert(rows_.end(), begin, begin + static_cast<std::ptrdiff_t>(size));
        targets_.push_back({i, batch[i].tokens[static_cast<std::size_t>(position)]});
        if (static_cast<std::int64_t>(targets_.size()) == kRowsPerChunk) flush();
      }
    }
    flush();
    return scores_;
  }

 private:
  struct Target {
    std::size_t sequence;
    std::int32_t token;
  };

  void flush() {
    if (targets_.empty()) return;
    const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
    logits_.resize(targets_.size() * vocab);
    model_.logits(rows_, logits_);
    for (std::size_t row = 0; row < targets_.size(); ++row) {
      const auto logits = std::span<const float>(logits_).subspan(row * vocab, vocab);
      const RowScore scored = score_row(logits);
      const auto [sequence, token] = targets_[row];
      scores_[sequence].log_likelihood +=
          static_cast<double>(logits[static_cast<std::size_t>(token)]) - scored.log_sum_exp;
      scores_[sequence].greedy = scores_[sequence].greedy && scored.top == token;
    }
    rows_.clear();
    targets_.clear();
  }

  ForwardModel& model_;
  std::vector<float> rows_, logits_;
  std::vector<Target> targets_;
  std::vector<SequenceScore> scores_;
};

std::size_t best_option(std::span<const double> values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

void judge(const TaskItem& item, std::span<const SequenceScore> scores, TaskResult& result) {
  std::vector<double> summed, per_byte;
  for (std::size_t option = 0; option < scores.size(); ++option) {
    const std::string& text = item.continuations[item.continuations.size() == 1 ? 0 : option];
    summed.push_back(scores[option].log_likelihood);
    per_byte.push_back(scores[option].log_likelihood / static_cast<double>(text.size()));
  }
  const auto gold = static_cast<std::size_t>(item.gold);
  const bool right = result.kind == TaskKind::last_word ? scores[0].greedy : best_option(summed) == gold;
  const bool right_norm = result.kind == TaskKind::multiple_choice ? best_option(per_byte) == gold : right;
  result.correct.push_back(right ? 1 : 0);
  result.correct_norm.push_back(right_norm ? 1 : 0);
}

/// Mean over tasks of each task's replicates: items are drawn within tasks, each with a stream of its own.
Interval mean_of_tasks(std::span<const std::vector<double>> series, const BootstrapOptions& options) {
  double value = 0;
  std::vector<double> replicates(static_cast<std::size_t>(options.resamples), 0.0);
  std::int64_t smallest = std::numeric_limits<std::int64_t>::max();
  for (std::size_t task = 0; task < series.size(); ++task) {
    const std::vector<double>& values = series[task];
    const auto mean = [&](std::span<const std::int32_t> indices) {
      double sum = 0;
      for (const std::int32_t i : indices) sum += values[static_cast<std::size_t>(i)];
      return sum / static_cast<double>(indices.size());
    };
    const auto drawn =
        bootstrap_replicates(static_cast<std::int64_t>(values.size()), mean, {options.seed + task, options.resamples});
    const double share = 1 / static_cast<double>(series.size());
    for (std::size_t i = 0; i < drawn.size(); ++i) replicates[i] += share * drawn[i];
    value += share * std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
    smallest = std::min(smallest, static_cast<std::int64_t>(values.size()));
  }
  if (series.empty()) throw failed("no task to average");
  return percentile_interval(value, std::move(replicates), smallest);
}

void require_same_task(const TaskResult& a, const TaskResult& b) {
  if (a.name != b.name || a.correct.size() != b.correct.size()) {
    throw failed(fmt::format("{} ({} items) and {} ({} items) can't be compared", a.name, a.correct.size(), b.name,
                             b.correct.size()));
  }
}

const char* kind_name(TaskKind kind) {
  switch (kind) {
    case TaskKind::last_word:
      return "last_word";
    case TaskKind::multiple_choice:
      return "multiple_choice";
    case TaskKind::shared_ending:
      return "shared_ending";
  }
  return "?";
}

}  // namespace

TaskResult run_task(ForwardModel& model, const Encode& encode, const Task& task, const TaskOptions& options) {
  auto sequences = tokenize_task(model.config(), encode, task);
  std::stable_sort(sequences.begin(), sequences.end(),
                   [](const Sequence& a, const Sequence& b) { return a.tokens.size() < b.tokens.size(); });
  std::vector<std::vector<SequenceScore>> scores(task.items.size());
  for (std::size_t i = 0; i < task.items.size(); ++i) scores[i].resize(task.items[i].options());

  BatchScorer scorer(model);
  Progress progress(task.name, static_cast<std::int64_t>(sequences.size()), !options.progress);
  for (std::size_t begin = 0, end = 0; begin < sequences.size(); begin = end) {
    throw_if_interrupted();
    const std::size_t length = sequences[begin].tokens.size();
    const std::size_t most = std::max<std::size_t>(static_cast<std::size_t>(options.tokens_per_batch) / length, 1);
    while (end < sequences.size() && end - begin < most && sequences[end].tokens.size() == length) ++end;
    const auto batch = std::span<const Sequence>(sequences).subspan(begin, end - begin);
    const auto batch_scores = scorer.score(batch);
    for (std::size_t i = 0; i < batch.size(); ++i) scores[batch[i].item][batch[i].option] = batch_scores[i];
    progress.update(static_cast<std::int64_t>(end));
  }

  TaskResult result{task.name, task.kind, {}, {}, {}, {}};
  for (std::size_t i = 0; i < task.items.size(); ++i) {
    for (const SequenceScore& score : scores[i]) {
      if (std::isfinite(score.log_likelihood)) continue;
      throw failed("the logits hold NaN or infinity", fmt::format("{}, item {}", task.name, i),
                   "check the weights: `spear inspect` finds values that are not finite");
    }
    judge(task.items[i], scores[i], result);
  }
  result.accuracy = bootstrap_mean(result.correct, options.bootstrap);
  result.accuracy_norm = bootstrap_mean(result.correct_norm, options.bootstrap);
  return result;
}

Interval accuracy_difference(const TaskResult& model, const TaskResult& reference, const BootstrapOptions& options) {
  require_same_task(model, reference);
  return bootstrap_difference(model.primary_correct(), reference.primary_correct(), options);
}

Interval mean_accuracy(std::span<const TaskResult> tasks, const BootstrapOptions& options) {
  std::vector<std::vector<double>> series;
  for (const TaskResult& task : tasks)
    series.emplace_back(task.primary_correct().begin(), task.primary_correct().end());
  return mean_of_tasks(series, options);
}

Interval mean_accuracy_difference(std::span<const TaskResult> model, std::span<const TaskResult> reference,
                                  const BootstrapOptions& options) {
  if (model.size() != reference.size()) throw failed("the two models ran different tasks");
  std::vector<std::vector<double>> series;
  for (std::size_t i = 0; i < model.size(); ++i) {
    require_same_task(model[i], reference[i]);
    const auto a = model[i].primary_correct(), b = reference[i].primary_correct();
    auto& differences = series.emplace_back(a.size());
    std::transform(a.begin(), a.end(), b.begin(), differences.begin(), std::minus<>());
  }
  return mean_of_tasks(series, options);
}

nlohmann::json tasks_json(std::span<const TaskResult> tasks, std::span<const TaskResult> reference,
                          const BootstrapOptions& options) {
  auto rows = nlohmann::json::array();
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const TaskResult& task = tasks[i];
    nlohmann::json row = {{"name", task.name},
                          {"kind", kind_name(task.kind)},
                          {"items", task.correct.size()},
                          {"accuracy", to_json(task.accuracy)},
                          {"accuracy_norm", to_json(task.accuracy_norm)},
                          {"primary", task.kind == TaskKind::multiple_choice ? "accuracy_norm" : "accuracy"}};
    if (!reference.empty()) {
      row["difference"] = to_json(accuracy_difference(task, reference[i], options));
      row["reference"] = reference[i].primary().value;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace spear
