// Tasks with a right answer: last-word prediction, multiple choice, Winogrande's shared ending.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/statistics.h"
#include "model/forward_model.h"

namespace spear {

enum class TaskKind {
  last_word,        ///< LAMBADA: right when greedy decoding yields the continuation
  multiple_choice,  ///< the choice with the highest log-likelihood per byte
  shared_ending     ///< Winogrande: the context under which the continuation is likeliest
};

/// One question: `continuations[i]` after `contexts[i]`, either of which may be shared by all options.
struct TaskItem {
  std::vector<std::string> contexts;       ///< one, or one per option
  std::vector<std::string> continuations;  ///< one, or one per option; a space goes before each
  std::int64_t gold = 0;

  std::size_t options() const { return std::max(contexts.size(), continuations.size()); }
};

struct Task {
  std::string name;  ///< the file's stem
  TaskKind kind = TaskKind::multiple_choice;
  std::vector<TaskItem> items;
};

/// A JSON-lines file whose fields tell the kind: context + continuation; query + choices + gold; context_options +
/// continuation + gold. A query that starts with "Question:" is followed by "\nAnswer:". The first `limit` items, 0:
/// all. Throws Error(bad_input) naming file and line.
Task read_task(const std::filesystem::path& path, std::int64_t limit = 0);

/// Token ids of a text, nothing added.
using Encode = std::function<std::vector<std::int32_t>(std::string_view)>;

struct TaskOptions {
  std::int64_t tokens_per_batch = 2048;
  BootstrapOptions bootstrap{};
  bool progress = false;
};

struct TaskResult {
  std::string name;
  TaskKind kind = TaskKind::multiple_choice;
  Interval accuracy;            ///< by summed log-likelihood ("acc"), or of greedy decoding
  Interval accuracy_norm;       ///< by log-likelihood per byte ("acc_norm"); equals accuracy unless multiple choice
  std::vector<double> correct;  ///< [items] 0 or 1
  std::vector<double> correct_norm;  ///< [items] 0 or 1

  /// The one that is reported: accuracy_norm for multiple choice.
  const Interval& primary() const { return kind == TaskKind::multiple_choice ? accuracy_norm : accuracy; }
  std::span<const double> primary_correct() const { return kind == TaskKind::multiple_choice ? correct_norm : correct; }
};

/// Sequences of equal length run together, so nothing is padded; only the rows that are scored meet the head.
/// Throws Error(bad_input) naming the item that is longer than the model's positions.
TaskResult run_task(ForwardModel& model, const Encode& encode, const Task& task, const TaskOptions& options = {});

/// Model minus reference, paired over items (which must be the same: Error(failed)).
Interval accuracy_difference(const TaskResult& model, const TaskResult& reference,
                             const BootstrapOptions& options = {});

/// Mean of the tasks' primary accuracies, and of its paired difference; items are drawn within each task.
Interval mean_accuracy(std::span<const TaskResult> tasks, const BootstrapOptions& options = {});
Interval mean_accuracy_difference(std::span<const TaskResult> model, std::span<const TaskResult> reference,
                                  const BootstrapOptions& options = {});

/// [{"name","kind","items","accuracy","accuracy_norm","primary","difference"?}, ...]; `reference` may be empty.
nlohmann::json tasks_json(std::span<const TaskResult> tasks, std::span<const TaskResult> reference = {},
                          const BootstrapOptions& options = {});

}  // namespace spear
