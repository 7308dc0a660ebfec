#include "cli/offline_options.h"

#include <fmt/format.h>

#include <charconv>

#include "base/error.h"
#include "engine/scheduler/latency_table.h"
#include "io/model_reader.h"

namespace spear::cli {

double parse_budget(const std::string& text) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string rest(end, text.data() + text.size());
  std::erase(rest, ' ');
  if (rest == "%") value /= 100;
  if (code != std::errc() || (!rest.empty() && rest != "%") || !(value >= 0 && value <= 0.2)) {
    throw usage_error(fmt::format("'{}' is no share between 0 and 20 %", text), "--budget", "use e.g. --budget 1% (or 0 for none)");
  }
  return value;
}

void OfflineOptions::add_model(CLI::App& command, const std::string& help) {
  command.add_option("--model,--reference", model, help)->required();
  add_common_options(command, common);
  add_device(command);
}

void OfflineOptions::add_reference(CLI::App& command) {
  command.add_option("--reference", model, "full-precision parent: GGUF file or Hugging Face directory")->required();
  add_common_options(command, common);
  add_device(command);
}

void OfflineOptions::add_device(CLI::App& command) {
  command.add_option("--device", device, "auto (a GPU if libtorch has one), cpu or cuda")->capture_default_str()->group("Machine");
}

void OfflineOptions::add_backbone(CLI::App& command, bool as_model) {
  if (as_model) {
    command.add_option("--model,--backbone", backbone, "quantized model: compressed-tensors, GPTQ, AWQ or GGUF")->required();
    quantizer = "rtn";
  } else {
    command.add_option("--backbone", backbone, "quantized model (compressed-tensors, GPTQ, AWQ, GGUF) that stays bit for bit as it is");
  }
}

void OfflineOptions::add_output(CLI::App& command) {
  command.add_option("--out", out, "directory to write")->required();
  command.add_flag("--force", force, "replace an existing output");
  command.add_flag("--resume", resume, "continue an interrupted run");
  add_workspace(command);
}

void OfflineOptions::add_workspace(CLI::App& command) {
  command.add_option("--workspace", workspace, "folder for intermediate results, kept and shared between runs");
}

void OfflineOptions::add_recipe(CLI::App& command) {
  command.add_option("--preset", preset, "quick, standard or thorough")->capture_default_str()->group("Recipe");
  command.add_option("--scheme", scheme, "w4-channel-sym, w4-channel-asym, w4-g128-sym, ...")->capture_default_str()->group("Recipe");
  command.add_option("--quantizer", quantizer, "rtn, clip, gptq or tuned")->capture_default_str()->group("Recipe");
  command.add_option("--rotate", rotation, "stream: quantize in a rotated basis, which rounds better and only SPEAR runs (default with tuned); none")->group("Recipe");
  command.add_option("--tune", tune, "what trains beside the compensators: none, scales or codes")->group("Recipe");
  command.add_option("--budget", budget, "bytes of all compensators, as a share of the model's")->capture_default_str()->group("Recipe");
  command.add_option("--placement", placement, "damage, fisher, uniform, random or trained")->group("Recipe");
  command.add_option("--latency-table", latency_table, "what spear profile wrote for a recovered model: placement weighs microseconds, too")
      ->type_name("FILE")->group("Recipe");
  command.add_option("--gate", gate_hidden, "hidden width of the gates; 0: static compensators")->group("Recipe");
  command.add_option("--gate-rows", gate_rows, "further projections of the input that only the gate sees")->group("Recipe");
  command.add_flag("--separate-a", separate_a, "no A shared by modules that read the same input")->group("Recipe");
  command.add_option("--alpha", alpha, "share of input errors that targets absorb (tuned)")->check(CLI::Range(0.0, 1.0))->group("Recipe");
  command.add_option("--rho", rho, "share of stream errors that targets absorb (tuned)")->check(CLI::Range(0.0, 1.0))->group("Recipe");
  command.add_option("--code-rate", code_rate, "peak step of learned rounding, in code units")->check(CLI::Range(0.0, 0.1))->group("Recipe");
  command.add_option("--code-margin", code_margin, "where latents start: at most this far from their code")->check(CLI::Range(0.0, 0.49))->group("Recipe");
  command.add_option("--factor-rate", factor_rate, "peak learning rate of the factors")->check(CLI::Range(0.0, 0.1))->group("Recipe");
  command.add_option("--scale-rate", scale_rate, "peak learning rate of row scales and norm gains")->check(CLI::Range(0.0, 0.1))->group("Recipe");
  command.add_option("--steps", steps, "training steps instead of the preset's")->check(CLI::Range(0, 1000000))->group("Recipe");
  command.add_option("--sample-sequences", sample_sequences, "sampled sequences instead of the preset's")->check(CLI::Range(8, 1000000))->group("Recipe");
  command.add_option("--quantizer-sequences", quantizer_sequences, "short sampled sequences for the quantizer instead of the preset's")->check(CLI::Range(8, 1000000))->group("Recipe");
  command.add_option("--quantizer-length", quantizer_length, "tokens of those sequences instead of the preset's")->check(CLI::Range(64, 1000000))->group("Recipe");
  command.add_option("--calibration", calibration, "own text for half of the calibration sequences")->group("Recipe");
  command.add_option("--seed", seed, "seed of everything random")->capture_default_str()->group("Recipe");
}

void OfflineOptions::add_measure(CLI::App& command) {
  command.add_option("--text", text, "text to measure on before and after; default: held-out samples")->group("Measure");
  command.add_option("--context", context, "tokens per window of the text")->capture_default_str()->group("Measure");
  command.add_option("--windows", windows, "windows of the text, 0: all")->capture_default_str()->group("Measure");
  command.add_option("--tasks", tasks, "questions as JSON lines to answer before and after; repeatable")
      ->type_size(1)->allow_extra_args(false)->group("Measure");
}

RecoverOptions OfflineOptions::resolve() const {
  RecoverOptions options;
  options.reference = model;
  options.backbone = backbone;
  options.out = out;
  options.workspace = workspace.empty() && out.empty() ? std::filesystem::temp_directory_path() / "spear-diagnose" : std::filesystem::path(workspace);
  options.text = text;
  options.calibration = calibration;
  options.context = context;
  options.windows = windows;
  options.tasks.assign(tasks.begin(), tasks.end());
  options.force = force;
  options.resume = resume;
  options.device = device;
  options.command = command_line;
  Recipe& recipe = options.recipe;
  recipe = preset_recipe(preset);
  recipe.scheme = parse_scheme(scheme);
  set_quantizer(recipe, quantizer);
  if (!backbone.empty()) {
    set_quantizer(recipe, "rtn");
    set_tune(recipe, Tune::none);
    if (kind_of_model(backbone) == ModelKind::huggingface) {
      throw bad_input("nothing in it is quantized: this is a reference, not a backbone", backbone,
                      "pass a compressed-tensors, GPTQ or AWQ directory or a GGUF file, or leave --backbone out");
    }
  }
  if (!rotation.empty()) {
    set_rotation(recipe, parse_rotation(rotation));
  } else if (backbone.empty()) {
    set_rotation(recipe, best_rotation(recipe, read_model_config(model)));
  }
  if (!backbone.empty() && recipe.rotation != Rotation::none) {
    throw usage_error("a backbone stays in the basis it is in", "--rotate", "leave --rotate out, or --backbone");
  }
  if (!tune.empty()) set_tune(recipe, parse_tune(tune));
  if (!backbone.empty() && recipe.tune == Tune::codes) {
    throw usage_error("a backbone's codes stay as they are", "--tune codes", "use --tune none or scales");
  }
  recipe.budget = parse_budget(budget);
  recipe.seed = recipe.samples.seed = recipe.train.seed = seed;
  if (!placement.empty()) recipe.placement = parse_placement(placement);
  if (!latency_table.empty()) {
    if (recipe.placement == Placement::uniform || recipe.placement == Placement::random) {
      throw usage_error(fmt::format("placement '{}' weighs nothing", name(recipe.placement)), "--latency-table", "use --placement fisher or damage");
    }
    const auto cost = compensator_cost(read_latency_table(latency_table).kernels);
    if (!cost || cost->us_per_weight <= 0) {
      throw bad_input("it does not say what compensators cost", latency_table, "measure a recovered model on a quiet machine: spear profile --model RECOVERED");
    }
    recipe.latency = cost;
  }
  if (gate_hidden) recipe.gate_hidden = *gate_hidden;
  if (gate_rows) recipe.gate_rows = *gate_rows;
  if (alpha) recipe.alpha = *alpha;
  if (rho) recipe.rho = *rho;
  if (code_rate) recipe.train.rates.codes = *code_rate;
  if (code_margin) recipe.code_margin = *code_margin;
  if (factor_rate) {
    recipe.train.rates.groups[static_cast<std::size_t>(ParameterGroup::factors)] = *factor_rate;
    recipe.train.full_rate_kl = 0;  // as asked for
  }
  if (scale_rate) {
    for (const auto group : {ParameterGroup::scales, ParameterGroup::gains}) recipe.train.rates.groups[static_cast<std::size_t>(group)] = *scale_rate;
  }
  if (separate_a) recipe.share_a = false;
  if (steps) recipe.train.steps = *steps;
  if (sample_sequences) recipe.samples.sequences = *sample_sequences;
  if (quantizer_sequences) recipe.quantizer_sequences = *quantizer_sequences;
  if (quantizer_length) recipe.quantizer_length = *quantizer_length;
  recipe.held_out_sequences = std::min(recipe.held_out_sequences, recipe.samples.sequences / 4);
  return options;
}

}  // namespace spear::cli
