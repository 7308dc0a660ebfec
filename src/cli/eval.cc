#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "engine/model_summary.h"
#include "eval/comparison.h"
#include "eval/evaluate.h"
#include "eval/tasks.h"
#include "eval/text_windows.h"

namespace spear::cli {
namespace {

struct Options {
  std::string reference, text;
  std::int64_t context = 1024, windows = 0, limit = 0;
  std::vector<std::string> tasks;
};

std::string shown(const Interval& interval, const char* format = "{:.4f} [{:.4f}, {:.4f}]") {
  return fmt::format(fmt::runtime(format), interval.value, interval.low, interval.high);
}

struct Session {
  const CommonOptions& common;
  const Options& options;
  const Tokenizer& tokenizer;
  CpuModel& model;
  CpuModel* reference;  // may be null
};

std::optional<EvalResult> evaluate_text(const Session& s) {
  if (s.options.text.empty()) return std::nullopt;
  const auto windows = first_windows(s.tokenizer, read_text_file(s.options.text), s.options.windows, s.options.context,
                                     s.options.text);
  ThreadPool pool(s.common.threads);
  EvalOptions options;
  options.pool = &pool;
  std::optional<FinalStates> states;
  if (s.reference != nullptr) {
    options.label = "reference";
    states = final_states(*s.reference, windows, options);
  }
  options.label = "evaluate";
  return evaluate(s.model, windows, states ? &*states : nullptr, options);
}

nlohmann::json evaluate_tasks(const Session& s) {
  if (s.options.tasks.empty()) return nullptr;
  const Encode encode = [&s](std::string_view text) { return encode_sequence(s.tokenizer, text); };
  TaskOptions options;
  options.progress = true;
  std::vector<TaskResult> results, references;
  for (const auto& path : s.options.tasks) {
    const Task task = read_task(path, s.options.limit);
    results.push_back(run_task(s.model, encode, task, options));
    if (s.reference != nullptr) references.push_back(run_task(*s.reference, encode, task, options));
  }
  return tasks_json(results, references);
}

nlohmann::json tasks_document(const nlohmann::json& tasks, const EvalBytes& bytes) {
  EvalResult none;
  auto json = eval_document(none, bytes, tasks);
  for (const char* field : {"perplexity", "kl", "top1_agreement", "tokens", "windows", "context"}) json.erase(field);
  return json;
}

void print_result(const EvalResult& result) {
  fmt::print("perplexity       {}\n", shown(result.perplexity));
  if (result.kl) fmt::print("KL(ref || model) {}\n", shown(*result.kl));
  if (result.top1_agreement) fmt::print("top-1 agreement  {}\n", shown(*result.top1_agreement));
  fmt::print("on {} predicted tokens, {} windows of {}\n", result.tokens, result.windows, result.context);
}

std::string shown(const nlohmann::json& interval) {
  const auto number = [&](const char* field) {
    return interval.at(field).is_number() ? fmt::format("{:.4f}", interval.at(field).get<double>()) : "-";
  };
  return fmt::format("{} [{}, {}]", number("value"), number("low"), number("high"));
}

void print_tasks(const nlohmann::json& tasks) {
  for (const auto& task : tasks) {
    const auto primary = task.at("primary").get<std::string>();
    fmt::print("{:<16} {} {}", task.at("name").get<std::string>(), primary, shown(task.at(primary)));
    if (task.contains("difference")) fmt::print(", against the reference {}", shown(task.at("difference")));
    fmt::print("\n");
  }
}

int run(const CommonOptions& common, const ModelOptions& model_options, const Options& options) {
  apply(common);
  if (options.text.empty() && options.tasks.empty()) {
    throw usage_error("nothing to evaluate on", "eval", "give --text FILE, --tasks FILE, or both");
  }
  const Tokenizer tokenizer = load_tokenizer(model_options.model);
  CpuModel model = load_model(model_options.model, common, model_options);
  std::optional<CpuModel> reference;
  if (!options.reference.empty()) {
    ModelOptions oracle;
    oracle.activations = "a32";
    oracle.kv_cache_type = KvCacheType::f32;
    reference.emplace(load_model(options.reference, common, oracle));
  }

  const Session session{common, options, tokenizer, model, reference ? &*reference : nullptr};
  const auto result = evaluate_text(session);
  const auto tasks = evaluate_tasks(session);
  const ModelSummary summary = summarize(model.weights());
  const EvalBytes bytes{summary.budget_base_bytes, kept_compensator_bytes(model, model_options)};
  if (common.json) {
    auto document = result ? eval_document(*result, bytes, tasks) : tasks_document(tasks, bytes);
    document["model"] = model_options.model;
    document["kv_cache_dtype"] = name(model_options.kv_cache_type);
    document["compensators"] = model_options.density() > 0 && !summary.compensators.empty();
    document["compensator_density"] = summary.compensators.empty() ? 0.0 : model_options.density();
    print_json(document);
  } else {
    if (result) print_result(*result);
    if (!tasks.is_null()) print_tasks(tasks);
  }
  print_next(common, reference ? fmt::format("spear inspect --model {}", shell_quoted(model_options.model))
                               : fmt::format("spear eval --model {} --reference PARENT ...",
                                             shell_quoted(model_options.model)));
  return 0;
}

}  // namespace

void add_eval(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<ModelOptions>();
  model->activations = "a32";  // what faster types cost is measured against these
  model->kv_cache_type = KvCacheType::f32;
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("eval", "Measure perplexity, divergence from a reference, and accuracy on tasks",
                               {"spear eval --model recovered --reference parent --text wiki.test.raw --windows 20",
                                "spear eval --model recovered --tasks hellaswag.jsonl --json"},
                               [=] { return run(*common, *model, *options); });
  add_model_options(command, model);
  command.add_option("--reference", options->reference, "Full-precision parent: adds KL and top-1 agreement")
      ->type_name("PATH")
      ->group("Model");
  command.add_option("--text", options->text, "Text for perplexity")->type_name("FILE")->group("Data");
  command.add_option("--context", options->context, "Tokens per window")->capture_default_str()->group("Data");
  command.add_option("--windows", options->windows, "The first N windows; 0: all")
      ->capture_default_str()
      ->group("Data");
  command.add_option("--tasks", options->tasks, "Questions as JSON lines; repeatable")
      ->type_name("FILE")
      ->type_size(1)
      ->allow_extra_args(false)
      ->group("Data");
  command.add_option("--limit", options->limit, "The first N questions of each task; 0: all")
      ->capture_default_str()
      ->group("Data");
  add_kv_cache_option(command, &model->kv_cache_type);
  add_common_options(command, common);
}

}  // namespace spear::cli
