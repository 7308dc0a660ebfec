#include "cli/model_options.h"

#include <chrono>
#include <map>

#include "base/log.h"
#include "base/progress.h"
#include "engine/model_summary.h"
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

CpuModel load_model(const std::string& path, bool compensators, const CommonOptions& common,
                    KvCacheType kv_cache_type) {
  const auto start = std::chrono::steady_clock::now();
  ModelWeights weights = read_model(path);
  const ModelSummary summary = summarize(weights);
  CpuModel model(std::move(weights),
                 {.threads = common.threads, .compensators = compensators, .kv_cache_type = kv_cache_type});
  log::info("{}: {} ({:.2f} bits per linear weight{}), loaded in {}; {} with {} threads", path,
            format_bytes(static_cast<double>(summary.bytes)), summary.bits_per_linear_weight,
            summary.compensators.empty() ? ""
            : compensators               ? ", compensators on"
                                         : ", compensators off",
            format_duration(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()),
            model.isa(), model.threads());
  return model;
}

}  // namespace spear::cli
