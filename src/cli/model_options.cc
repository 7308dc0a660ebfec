#include "cli/model_options.h"

#include <chrono>
#include <map>

#include "base/log.h"
#include "base/progress.h"
#include "engine/model_summary.h"
#include "engine/profile.h"
#include "io/model_reader.h"

namespace spear::cli {

void add_model_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options) {
  command.add_option("--model", options->model, "Hugging Face directory, GGUF file or SPEAR checkpoint")
      ->type_name("PATH")
      ->required()
      ->group("Model");
  command.add_option("--compensators", options->compensators, "Apply the checkpoint's compensators: on or off")
      ->check(CLI::IsMember({"on", "off"}).description(""))
      ->type_name("on|off")
      ->capture_default_str()
      ->group("Model");
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

CpuModel make_model(ModelWeights weights, const std::string& name, bool compensators, const CommonOptions& common,
                    const ModelOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ModelSummary summary = summarize(weights);
  CpuModel model(std::move(weights),
                 {common.threads, compensators, parse_activations(options.activations),
                  parse_head_type(options.head_type), options.kv_cache_type});
  log::info("{}: {} ({:.2f} bits per linear weight{}), prepared in {}; {} {} with {} threads", name,
            format_bytes(static_cast<double>(summary.bytes)), summary.bits_per_linear_weight,
            summary.compensators.empty() ? ""
            : compensators               ? ", compensators on"
                                         : ", compensators off",
            format_duration(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()),
            model.isa(), options.activations, model.threads());
  return model;
}

ModelWeights read_weights(const std::string& path, const ModelOptions& options) {
  return parse_activations(options.activations) == Activations::f32 ? read_model(path) : read_backbone(path);
}

CpuModel load_model(const std::string& path, bool compensators, const CommonOptions& common,
                    const ModelOptions& options) {
  return make_model(read_weights(path, options), path, compensators, common, options);
}

void use_measured_kernels(CpuModel& model, const ModelOptions& options) {
  const LatencyKey key = latency_key(model, options.kv_cache_type, options.head_type, SPEAR_VERSION);
  if (const auto table = find_latency_table(options.model, key)) model.set_fusion_table(FusionTable(table->kernels));
}

}  // namespace spear::cli
