#include "recover/recipe.h"

#include <fmt/format.h>

#include <limits>

#include "base/error.h"

namespace spear {
namespace {

constexpr std::pair<const char*, Tune> kTunes[] = {{"none", Tune::none}, {"scales", Tune::scales}, {"codes", Tune::codes}};

constexpr std::pair<const char*, Rotation> kRotations[] = {{"none", Rotation::none}, {"stream", Rotation::stream}};

constexpr double kFullRateKl = 0.3;  ///< held-out KL of round-to-nearest behind the closed form, whose rate for frozen codes it is

constexpr std::size_t at(ParameterGroup group) { return static_cast<std::size_t>(group); }

}  // namespace

Recipe preset_recipe(std::string_view preset) {
  Recipe recipe;
  recipe.preset = preset;
  recipe.train.tokens_per_step = recipe.train.sequence_length = 1024;
  if (preset == "quick") {
    recipe.samples = {.sequences = 56, .length = 1024, .batch = 56, .seed = 0};
    recipe.held_out_sequences = 8;
    recipe.quantizer_sequences = 128;
    recipe.quantizer_length = 256;
    recipe.diagnose = {.sequences = 4, .length = 256};
    recipe.train.steps = 48;
    recipe.train.evaluations = 1;
  } else if (preset == "standard") {
    recipe.samples = {.length = 1024, .batch = 80, .seed = 0};
    recipe.held_out_sequences = 20;
    recipe.quantizer_sequences = 1280;
    recipe.quantizer_length = 128;
    recipe.diagnose = {.sequences = 8, .length = 256, .restore_one = true, .delta_kl = true};
    recipe.train.steps = 380;
  } else if (preset == "thorough") {
    recipe.samples = {.sequences = 800, .length = 1024, .batch = 100, .seed = 0};
    recipe.held_out_sequences = 40;
    recipe.quantizer_sequences = 3200;
    recipe.quantizer_length = 128;
    recipe.diagnose = {.sequences = 16, .length = 256, .restore_one = true, .delta_kl = true, .kl_tokens = 4096};
    recipe.train.steps = 1240;
  } else {
    throw usage_error(fmt::format("unknown preset '{}'", preset), "--preset", "use quick, standard or thorough");
  }
  set_quantizer(recipe, "tuned");
  return recipe;
}

Tune parse_tune(std::string_view text) {
  for (const auto& [label, tune] : kTunes) {
    if (text == label) return tune;
  }
  throw usage_error(fmt::format("unknown value '{}'", text), "--tune", "use none, scales or codes");
}

Rotation parse_rotation(std::string_view text) {
  for (const auto& [label, rotation] : kRotations) {
    if (text == label) return rotation;
  }
  throw usage_error(fmt::format("unknown value '{}'", text), "--rotate", "use none or stream");
}

const char* name(Rotation rotation) { return kRotations[static_cast<std::size_t>(rotation)].first; }

const char* name(Tune tune) { return kTunes[static_cast<std::size_t>(tune)].first; }

void set_quantizer(Recipe& recipe, std::string_view quantizer) {
  if (quantizer != "rtn" && quantizer != "clip" && quantizer != "gptq" && quantizer != "tuned") {
    throw usage_error(fmt::format("unknown quantizer '{}'", quantizer), "--quantizer", "use rtn, clip, gptq or tuned");
  }
  recipe.quantizer = quantizer;
  // Frozen rounding leaves more to do, and more passes over the same tokens still help it (docs/algorithm.md).
  const bool simple = quantizer == "rtn" || quantizer == "clip";
  if (recipe.preset == "standard") recipe.train.steps = simple ? 700 : 380;
  recipe.gate_hidden = simple ? 8 : 0;  // behind the other quantizers gates gained nothing
  recipe.placement = Placement::fisher;
  set_tune(recipe, Tune::scales);
}

Rotation best_rotation(const Recipe& recipe, const ModelConfig& config) {
  return recipe.quantizer == "tuned" && config.can_rotate_stream() ? Rotation::stream : Rotation::none;
}

void set_rotation(Recipe& recipe, Rotation rotation) {
  recipe.rotation = rotation;
  set_tune(recipe, recipe.tune);
}

void set_tune(Recipe& recipe, Tune tune) {
  recipe.tune = tune;
  const bool simple = recipe.quantizer == "rtn" || recipe.quantizer == "clip";
  auto& rates = recipe.train.rates;
  // Many parameters with far to go over-fit 200 sequences (docs/algorithm.md).
  if (recipe.preset == "standard") recipe.samples.sequences = simple && tune == Tune::scales ? 460 : 220;
  recipe.train.full_rate_kl = tune == Tune::none ? kFullRateKl : 0;
  rates.codes = 3e-3;
  rates.groups[at(ParameterGroup::factors)] = simple ? (tune == Tune::none ? 3e-3 : 2e-3) : recipe.preset == "quick" ? 1e-3 : 5e-4;
  rates.groups[at(ParameterGroup::gate)] = 3e-3;
  rates.groups[at(ParameterGroup::scales)] = 1e-3;
  rates.groups[at(ParameterGroup::gains)] = 1e-3;
  if (simple || recipe.rotation == Rotation::none) return;
  // A rotated model starts closer: the rates above first carry it away (docs/algorithm.md).
  rates.groups[at(ParameterGroup::factors)] = recipe.preset == "quick" ? 3e-4 : 2e-4;
  rates.groups[at(ParameterGroup::scales)] = rates.groups[at(ParameterGroup::gains)] = 3e-4;
}

QuantizeOptions quantize_options(const Recipe& recipe) {
  QuantizeOptions options;
  options.scheme = recipe.scheme;
  options.quantizer = recipe.quantizer == "rtn" ? Quantizer::rtn : recipe.quantizer == "clip" ? Quantizer::clip : Quantizer::gptq;
  options.alpha = recipe.alpha;
  options.rho = recipe.rho;
  if (recipe.quantizer == "gptq") {
    options.alpha = options.rho = 0;
    options.outlier_cap = std::numeric_limits<double>::infinity();
    options.sweeps = 0;
  }
  return options;
}

nlohmann::json to_json(const Recipe& recipe) {
  const auto& rates = recipe.train.rates.groups;
  return {{"preset", recipe.preset},
          {"scheme", to_string(recipe.scheme)},
          {"quantizer", recipe.quantizer},
          {"rotation", name(recipe.rotation)},
          {"tune", name(recipe.tune)},
          {"budget", recipe.budget},
          {"seed", recipe.seed},
          {"sample_sequences", recipe.samples.sequences},
          {"sample_length", recipe.samples.length},
          {"held_out_sequences", recipe.held_out_sequences},
          {"quantizer_sequences", recipe.quantizer_sequences},
          {"quantizer_length", recipe.quantizer_length},
          {"placement", name(recipe.placement)},
          {"share_a", recipe.share_a},
          {"latency", recipe.latency ? nlohmann::json{{"fixed_us", recipe.latency->fixed_us}, {"us_per_weight", recipe.latency->us_per_weight}}
                                     : nlohmann::json(nullptr)},
          {"wide_rank", recipe.wide_rank},
          {"wide_steps", recipe.wide_steps},
          {"alpha", recipe.alpha},
          {"rho", recipe.rho},
          {"gate_hidden", recipe.gate_hidden},
          {"gate_rows", recipe.gate_rows},
          {"steps", recipe.train.steps},
          {"tokens_per_step", recipe.train.tokens_per_step},
          {"sequence_length", recipe.train.sequence_length},
          {"warmup_steps", recipe.train.warmup_steps},
          {"int8_from", recipe.train.int8_from},
          {"gates_from", recipe.train.gates_from},
          {"code_margin", recipe.code_margin},
          {"codes_until", recipe.train.codes_until},
          {"full_rate_kl", recipe.train.full_rate_kl},
          {"rate_codes", recipe.train.rates.codes},
          {"rate_factors", rates[at(ParameterGroup::factors)]},
          {"rate_gate", rates[at(ParameterGroup::gate)]},
          {"rate_scales", rates[at(ParameterGroup::scales)]},
          {"rate_gains", rates[at(ParameterGroup::gains)]}};
}

}  // namespace spear
