#include "recover/pipeline.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cmath>
#include <ctime>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/resources.h"
#include "eval/comparison.h"
#include "eval/tasks.h"
#include "io/checkpoint.h"
#include "io/compensator_file.h"
#include "io/model_reader.h"
#include "recover/stages.h"
#include "report/report.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

constexpr const char* kVersion = "0.1.0";

std::string utc_now() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

/// The text that models are measured on: the user's, or samples that training never sees.
struct Measure {
  TextWindows windows;
  nlohmann::json text;
};

Measure choose_text(Stages& stages, const RecoverOptions& options) {
  Measure out;
  if (!options.text.empty()) {
    out.windows = first_windows(stages.tokenizer(), read_text_file(options.text), options.windows, options.context,
                                options.text.string());
    out.text = {{"name", options.text.filename().string()}, {"sha256", sha256_file(options.text)}};
  } else {
    const auto& set = stages.samples();
    const std::int64_t chosen_by = set.selection_sequences();
    out.windows = first_windows(set.rows(set.train_sequences() + chosen_by, set.held_out - chosen_by), 0, set.length, "held-out samples");
    out.text = {{"name", "held-out samples of the reference"}, {"sha256", nullptr}};
  }
  out.text["context"] = out.windows.context;
  out.text["windows"] = out.windows.windows;
  out.text["tokens"] = out.windows.predictions();
  return out;
}

struct Row {
  std::string name, label;
  EvalResult result;
  std::int64_t bytes = 0;
};

/// Evaluates models one after the other in float32 on exactly what a checkpoint stores.
class Evaluator {
 public:
  Evaluator(Stages& stages, Measure measure) : stages_(stages), measure_(std::move(measure)) {
    options_.pool = &pool_;
    options_.per_token = true;
    options_.windows_per_batch = std::max<std::int64_t>(1, 2048 / measure_.windows.context);
  }

  void reference(const ModelWeights& weights, std::int64_t bytes) {
    reference_model_ = std::make_unique<TorchModel>(weights, stages_.device(), torch::kFloat32);
    options_.label = "evaluate reference";
    reference_ = final_states(*reference_model_, measure_.windows, options_);
    // The states are all that is still needed of it, and the head.
    reference_model_->weights().linears.clear();
    rows_.push_back({"reference", "reference", evaluate(reference_, measure_.windows, &reference_, options_), bytes});
  }
  /// weights: as they are stored.
  void model(const std::string& name, const std::string& label, const ModelWeights& weights, std::int64_t bytes) {
    TorchModel model(weights, stages_.device(), torch::kFloat32);
    options_.label = "evaluate " + name;
    rows_.push_back({name, label, evaluate(model, measure_.windows, &reference_, options_), bytes});
  }
  const std::vector<Row>& rows() const { return rows_; }
  const Row& row(const std::string& name) const {
    for (const auto& row : rows_) {
      if (row.name == name) return row;
    }
    throw failed("no row " + name, "evaluation");
  }
  const Measure& measure() const { return measure_; }

 private:
  Stages& stages_;
  Measure measure_;
  ThreadPool pool_;
  EvalOptions options_;
  std::unique_ptr<TorchModel> reference_model_;
  FinalStates reference_;
  std::vector<Row> rows_;
};

/// "tasks" and "tasks_mean" of the manifest: accuracies of the recovered model beside the reference's on the same questions.
nlohmann::json measure_tasks(Stages& stages, const RecoverOptions& options, const ModelWeights& recovered) {
  const auto encode = [&](std::string_view text) { return encode_sequence(stages.tokenizer(), text); };
  const auto answers = [&](const ModelWeights& weights) {
    TorchModel model(weights, stages.device(), torch::kFloat32);
    std::vector<TaskResult> out;
    for (const auto& path : options.tasks) out.push_back(run_task(model, encode, read_task(path), {.progress = true}));
    return out;
  };
  const auto of_reference = answers(stages.reference());
  const auto of_recovered = answers(stages.as_stored(recovered));
  return {{"tasks", tasks_json(of_recovered, of_reference)},
          {"tasks_mean", {{"accuracy", to_json(mean_accuracy(of_recovered))},
                          {"difference", to_json(mean_accuracy_difference(of_recovered, of_reference))},
                          {"reference", mean_accuracy(of_reference).value}}}};
}

nlohmann::json results_json(const Evaluator& evaluator, const Tokenizer& tokenizer) {
  nlohmann::json rows = nlohmann::json::array(), gap = nlohmann::json::object(), paired = nlohmann::json::array();
  const auto& reference = evaluator.row("reference").result;
  const auto& last = evaluator.rows().back();
  for (const auto& row : evaluator.rows()) {
    auto json = to_json(row.result);
    json["name"] = row.name;
    json["label"] = row.label;
    json["bytes"] = row.bytes;
    rows.push_back(std::move(json));
    if (row.name == "reference" || row.name == last.name) continue;
    gap[row.name == "rtn" ? "rtn" : row.name == "quantized" ? "zero_byte" : row.name] =
        to_json(gap_recovered(reference, row.result, last.result));
    auto difference = to_json(paired_difference(last.result, row.result));
    difference["a"] = last.name;
    difference["b"] = row.name;
    paired.push_back(std::move(difference));
  }
  nlohmann::json out = {{"text", evaluator.measure().text}, {"rows", rows}, {"gap", gap}, {"paired", paired}};
  const auto changes = tokens_changed_most(evaluator.measure().windows, evaluator.row("rtn").result, last.result, 12);
  const auto decode = [&](std::span<const std::int32_t> ids) { return tokenizer.decode(ids); };
  auto tokens = to_json(changes, evaluator.measure().windows, decode);
  tokens["from"] = "rtn";
  tokens["to"] = last.name;
  out["token_changes"] = std::move(tokens);
  return out;
}

nlohmann::json bytes_json(const Stages& stages, const ModelWeights& model, std::int64_t reference_bytes) {
  const ModelConfig& config = stages.reference().config;
  const std::int64_t base = stages.budget_base(), added = compensator_file_bytes(model);
  const std::int64_t linears = base - stages.budget_embeddings();
  double weights = 0;
  for (int index = 0; index < module_count(config); ++index) {
    weights += static_cast<double>(in_features(config, ModuleId{index}.kind()) * out_features(config, ModuleId{index}.kind()));
  }
  return {{"base", base},
          {"compensators", added},
          {"fraction", static_cast<double>(added) / static_cast<double>(base)},
          {"linears_fraction", static_cast<double>(added) / static_cast<double>(linears)},
          {"bits_per_linear_weight", 8.0 * static_cast<double>(linears + added) / weights},
          {"reference", reference_bytes}};
}

std::int64_t model_bytes(const std::filesystem::path& model) {
  if (!std::filesystem::is_directory(model)) return static_cast<std::int64_t>(std::filesystem::file_size(model));
  std::int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(model)) {
    if (is_weights_file(entry.path())) bytes += static_cast<std::int64_t>(entry.file_size());
  }
  return bytes;
}

nlohmann::json manifest_head(Stages& stages, const RecoverOptions& options) {
  const auto& config = stages.reference().config;
  std::int64_t parameters = config.vocab_size * config.hidden_size * (stages.reference().lm_head.empty() ? 1 : 2);
  for (int index = 0; index < module_count(config); ++index) {
    parameters += in_features(config, ModuleId{index}.kind()) * out_features(config, ModuleId{index}.kind());
  }
  nlohmann::json manifest = {
      {"schema", "spear.manifest/1"}, {"spear_version", kVersion}, {"created", utc_now()}, {"command", options.command},
      {"machine", machine_description() + (stages.device().is_cuda() ? ", CUDA" : "")},
      {"compute", name(stages.compute())}, {"seed", stages.recipe().seed},
      {"threads", at::get_num_threads()},
      {"reference", {{"name", options.reference.filename().string()}, {"path", options.reference.string()},
                     {"sha256", stages.reference_sha256()}, {"bytes", model_bytes(options.reference)}}},
      {"recipe", to_json(stages.recipe())},
      {"model", {{"layers", config.num_hidden_layers}, {"hidden_size", config.hidden_size}, {"parameters", parameters}}}};
  if (!options.backbone.empty()) {
    manifest["backbone"] = {{"name", options.backbone.filename().string()}, {"path", options.backbone.string()},
                            {"sha256", model_sha256(options.backbone)}, {"bytes", model_bytes(options.backbone)}};
  }
  return manifest;
}

nlohmann::json stage_times(const Stages& stages) {
  auto out = nlohmann::json::array();
  for (const auto& stage : stages.times()) out.push_back({{"name", stage.name}, {"seconds", stage.seconds}});
  return out;
}

void write_result(Stages& stages, const RecoverOptions& options, const ModelWeights& weights, const nlohmann::json& manifest) {
  StagedDirectory staged(options.out, options.force);
  stages.write(staged.path(), weights, manifest);
  write_file_atomic(staged.path() / "report.html", render_report(read_manifest(staged.path())));
  staged.commit();
}

nlohmann::json calibration_json(const Calibrated& calibrated, const Recipe& recipe, const CalibrationSet& set) {
  auto steps = nlohmann::json::array();
  for (const auto& point : calibrated.train.curve) {
    nlohmann::json step = {{"step", point.step}, {"loss", point.loss}, {"lr", nullptr}};
    if (point.held_out_kl >= 0) step["held_out_kl"] = point.held_out_kl;
    steps.push_back(std::move(step));
  }
  return {{"steps", steps},
          {"tokens", recipe.train.steps * recipe.train.tokens_per_step},
          {"sequences", set.sequences},
          {"sampled_tokens", set.sequences * set.length},
          {"distinct_4grams", distinct_ngrams(set, 4)},
          {"best_step", calibrated.train.best_step},
          {"whitening", calibrated.whitening},
          {"seconds_per_step", calibrated.train.seconds_per_step}};
}

RecoverOptions resolved(const RecoverOptions& options) {
  RecoverOptions out = options;
  if (out.workspace.empty()) {
    out.workspace = out.out.string() + ".work";
    if (std::filesystem::exists(out.workspace) && !options.resume && !options.force) {
      throw usage_error("an unfinished run left its results here", out.workspace.string(),
                        "pass --resume to continue it, or --force to use what still fits");
    }
  }
  if (std::filesystem::exists(out.out) && !options.force) {
    throw usage_error("output exists already", out.out.string(), "choose another --out, or pass --force to replace it");
  }
  return out;
}

}  // namespace

nlohmann::json recover(const RecoverOptions& given) {
  const RecoverOptions options = resolved(given);
  preflight(options, read_model_config(options.reference));
  Stages stages(options);
  auto manifest = manifest_head(stages, options);
  if (options.recipe.budget > 0) manifest["diagnosis"] = to_json(stages.damage());
  const Calibrated calibrated = stages.calibrate();
  const auto& base = stages.reference();
  manifest["bytes"] = bytes_json(stages, calibrated.weights, model_bytes(options.reference));
  if (!calibrated.placement.is_null()) manifest["placement"] = calibrated.placement;
  manifest["calibration"] = calibration_json(calibrated, stages.recipe(), stages.samples());
  if (!calibrated.gates.is_null()) manifest["gates"] = calibrated.gates;

  const std::int64_t base_bytes = manifest["bytes"]["base"], added = manifest["bytes"]["compensators"];
  manifest["results"] = stages.timed("evaluate", [&] {
    Evaluator evaluator(stages, choose_text(stages, options));
    evaluator.reference(base, manifest["reference"]["bytes"]);
    evaluator.model("rtn", "RTN " + to_string(options.recipe.scheme), with_stored_embeddings(stages.rtn_model()), base_bytes);
    if (options.recipe.quantizer != "rtn" || stages.recipe().rotation != Rotation::none || !options.backbone.empty()) {
      evaluator.model("quantized", options.backbone.empty() ? "quantizer alone, untrained" : "backbone as given",
                      stages.as_stored(stages.quantized_model()), base_bytes);
    }
    evaluator.model("recovered", "recovered", stages.as_stored(calibrated.weights), base_bytes + added);
    return results_json(evaluator, stages.tokenizer());
  });
  if (!options.tasks.empty()) {
    manifest["results"].update(stages.timed("tasks", [&] { return measure_tasks(stages, options, calibrated.weights); }));
  }
  manifest["tokens"] = manifest["results"]["token_changes"];
  manifest["results"].erase("token_changes");
  manifest["stages"] = stage_times(stages);
  manifest["peak_memory_bytes"] = peak_resident_bytes();
  write_result(stages, options, calibrated.weights, manifest);
  if (given.workspace.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(options.workspace, ignored);
  }
  return read_manifest(options.out);
}

nlohmann::json quantize(const RecoverOptions& given) {
  const RecoverOptions options = resolved(given);
  preflight(options, read_model_config(options.reference), PlannedCommand::quantize);
  Stages stages(options);
  auto manifest = manifest_head(stages, options);
  const auto weights = stages.quantized_model();
  manifest["bytes"] = bytes_json(stages, weights, model_bytes(options.reference));
  manifest["stages"] = stage_times(stages);
  write_result(stages, options, weights, manifest);
  if (given.workspace.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(options.workspace, ignored);
  }
  return read_manifest(options.out);
}

DiagnoseReport diagnose_model(const RecoverOptions& options) {
  preflight(options, read_model_config(options.reference));
  Stages stages(options);
  DiagnoseReport out{stages.damage(), to_json(stages.damage())};
  out.json["schema"] = "spear.diagnosis/1";
  return out;
}

void preflight(const RecoverOptions& options, const ModelConfig& config, PlannedCommand command) {
  const Needs needs = estimate_needs(config, options.recipe, command, torch::elementSize(compute_type(device_named(options.device))),
                                     static_cast<std::int64_t>(element_bytes(weights_type(options.reference))));
  const std::int64_t memory = available_memory_bytes();
  const auto gigabytes = [](std::int64_t bytes) { return format_bytes(static_cast<double>(bytes)); };
  if (const std::int64_t must = needs.memory - needs.mapped; memory > 0 && must > memory) {
    throw out_of_resources(fmt::format("about {} of memory are needed, {} are free", gigabytes(must), gigabytes(memory)), "preflight",
                           "close other programs, use --preset quick, --tune scales, or a machine with more memory");
  }
  const std::int64_t disk = free_disk_bytes(options.out.empty() ? options.workspace : options.out);
  if (needs.disk > disk) {
    throw out_of_resources(fmt::format("about {} of disk are needed, {} are free", gigabytes(needs.disk), gigabytes(disk)), "preflight",
                           "free disk space, or choose another --out");
  }
}

}  // namespace spear
