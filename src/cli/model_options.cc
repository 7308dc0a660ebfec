#include "cli/model_options.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <map>
#include <optional>

#include "base/log.h"
#include "base/mapping_guard.h"
#include "base/progress.h"
#include "engine/model_summary.h"
#include "engine/profile.h"
#include "engine/scheduler/compensator_order.h"
#include "io/model_reader.h"

namespace spear::cli {

namespace {

std::optional<double> parse_density(const std::string& text) {
  if (text == "on") return 1.0;
  if (text == "off") return 0.0;
  double value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || !(value >= 0 && value <= 1)) return {};
  return value;
}

}  // namespace

double ModelOptions::density() const { return parse_density(compensators).value_or(1.0); }

void add_compensators_option(CLI::App& command, const std::shared_ptr<ModelOptions>& options, const std::string& also) {
  const std::string words = also.empty() ? "on|off" : also + "|on|off";
  const auto check = [words, also](const std::string& text) {
    const bool known = (!also.empty() && text == also) || parse_density(text);
    return known ? std::string() : fmt::format("{} is neither {} nor a part from 0 to 1", text, words);
  };
  command
      .add_option("--compensators", options->compensators,
                  "Apply the checkpoint's compensators, or a part of them (0.38): those that are worth most")
      ->check(CLI::Validator(check, ""))
      ->type_name(words + "|PART")
      ->capture_default_str()
      ->group("Model");
}

void add_model_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options) {
  command.add_option("--model", options->model, "Hugging Face directory, GGUF file or SPEAR checkpoint")
      ->type_name("PATH")
      ->required()
      ->group("Model");
  add_compensators_option(command, options);
  add_kernel_options(command, options);
}

void add_kernel_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options) {
  command
      .add_option("--activations", options->activations,
                  "Inputs of linears: a16 (16-bit integers), a8 (8-bit, faster) or a32 (float32, the oracle)")
      ->check(CLI::IsMember({"a16", "a8", "a32"}).description(""))
      ->type_name("a16|a8|a32")
      ->capture_default_str()
      ->group("Model");
  command.add_option("--device", options->device, "Where it runs")
      ->check(CLI::IsMember({"cpu"}).description(""))
      ->type_name("cpu")
      ->capture_default_str()
      ->group("Model");
  command.add_option("--head-dtype", options->head_type, "Embedding and head in int8, bf16 or w4, unless a32")
      ->check(CLI::IsMember({"int8", "bf16", "w4"}).description(""))
      ->type_name("int8|bf16|w4")
      ->capture_default_str()
      ->group("Model");
}

void add_kv_cache_option(CLI::App& command, KvCacheType* type) {
  const std::map<std::string, KvCacheType> names = {
      {"f32", KvCacheType::f32}, {"bf16", KvCacheType::bf16}, {"int8", KvCacheType::int8}};
  command
      .add_option_function<std::string>(
          "--kv-cache-dtype", [=](const std::string& value) { *type = names.at(value); },
          "Keys and values are kept in bf16, int8 or f32")
      ->check(CLI::IsMember({"bf16", "int8", "f32"}).description(""))
      ->type_name("bf16|int8|f32")
      ->default_str(name(*type))
      ->group("Model");
}

CpuModel make_model(ModelWeights weights, const std::string& path, const CommonOptions& common, const ModelOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ModelSummary summary = summarize(weights);
  CpuModel model(std::move(weights),
                 {common.threads, options.density() > 0, parse_activations(options.activations),
                  parse_head_type(options.head_type), options.kv_cache_type});
  if (model.activations() != Activations::f32) release_mapped_pages();  // weights and embedding were packed
  const auto all = summary.compensators.size(), kept = compensators_at(options.density(), all);
  if (kept > 0 && kept < all) {
    order_compensators(model, path);
    model.set_compensator_density(options.density());
  }
  const std::string compensators = all == 0      ? ""
                                   : kept == all ? ", compensators on"
                                   : kept == 0   ? ", compensators off"
                                                 : fmt::format(", {} of {} compensators", kept, all);
  log::info("{}: {} ({:.2f} bits per linear weight{}), prepared in {}; {} {} with {} threads", path,
            format_bytes(static_cast<double>(summary.bytes)), summary.bits_per_linear_weight, compensators,
            format_duration(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()),
            model.isa(), options.activations, model.threads());
  return model;
}

ModelWeights read_weights(const std::string& path, const ModelOptions& options) {
  return parse_activations(options.activations) == Activations::f32 ? read_model(path) : read_backbone(path);
}

CpuModel load_model(const std::string& path, const CommonOptions& common, const ModelOptions& options) {
  return make_model(read_weights(path, options), path, common, options);
}

void order_compensators(CpuModel& model, const std::string& path) {
  const auto modules = static_cast<std::size_t>(module_count(model.config()));
  model.set_compensator_order(compensator_order(model.weights(), read_module_damage(path, modules)));
}

std::int64_t kept_compensator_bytes(const CpuModel& model, const ModelOptions& options) {
  const auto modules = static_cast<std::size_t>(module_count(model.config()));
  auto order = compensator_order(model.weights(), read_module_damage(options.model, modules));
  order.resize(compensators_at(options.density(), order.size()));
  std::vector<const Compensator*> kept;
  for (const int module : order) kept.push_back(&*model.weights().linear({module}).compensator);
  return compensator_bytes(kept);
}

void use_measured_kernels(CpuModel& model, const ModelOptions& options) {
  const LatencyKey key = latency_key(model, options.kv_cache_type, options.head_type, SPEAR_VERSION);
  if (const auto table = find_latency_table(options.model, key)) model.set_fusion_table(FusionTable(table->kernels));
}

}  // namespace spear::cli
