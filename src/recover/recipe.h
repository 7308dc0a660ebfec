// Every choice of a recovery in one value; presets fill it, flags change it, the manifest keeps it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "quant/model_quantizer.h"
#include "recover/diagnose.h"
#include "recover/place.h"
#include "recover/sample.h"
#include "recover/train.h"

namespace spear {

/// In which basis the stream of the model is that is quantized (model/stream_rotation.h).
enum class Rotation { none, stream };

struct Recipe {
  std::string preset = "quick";
  W4Scheme scheme;
  std::string quantizer = "tuned";  ///< rtn, clip, gptq (plain), or tuned (the whole chain of model_quantizer.h)
  Rotation rotation = Rotation::none;
  Tune tune = Tune::scales;
  double budget = 0.01;             ///< share of the base bytes (design §2); 0: no compensators
  std::uint64_t seed = 0;

  SampleOptions samples;
  std::int64_t held_out_sequences = 16;
  std::int64_t quantizer_sequences = 128, quantizer_length = 128;  ///< what GPTQ and the closed form look at
  DiagnoseOptions diagnose;
  Placement placement = Placement::uniform;
  bool share_a = true;
  std::int64_t gate_hidden = 0, gate_rows = 0;  ///< hidden 0: no gates
  double alpha = 0.6, rho = 0.6;                ///< of the chain (model_quantizer.h)
  std::int64_t max_rank = 16;
  std::optional<CompensatorCost> latency;  ///< placement weighs microseconds, too
  std::int64_t wide_rank = 8, wide_steps = 50;  ///< of Placement::trained: trained everywhere before it is cut
  double code_margin = 0.4;  ///< latents start at most this far from their code, towards the target; 0.5: the cell's edge
  TrainOptions train;
};

/// "quick", "standard", "thorough"; throws Error(usage) naming the valid ones.
Recipe preset_recipe(std::string_view preset);

Rotation parse_rotation(std::string_view text);  ///< "none", "stream"
const char* name(Rotation rotation);
Tune parse_tune(std::string_view text);  ///< "none", "scales", "codes"
const char* name(Tune tune);
/// "rtn", "clip", "gptq", "tuned"; sets what the preset has measured as best with it (gates, rates, steps, placement).
void set_quantizer(Recipe& recipe, std::string_view quantizer);
/// Which basis measured best behind the recipe's quantizer, of those that this model can be in.
Rotation best_rotation(const Recipe& recipe, const ModelConfig& config);
/// Sets the basis and the rates that go with it; call after set_quantizer.
void set_rotation(Recipe& recipe, Rotation rotation);
/// Sets what trains and the rates that go with it; call after set_quantizer and set_rotation.
void set_tune(Recipe& recipe, Tune tune);
QuantizeOptions quantize_options(const Recipe& recipe);

nlohmann::json to_json(const Recipe& recipe);

}  // namespace spear
