// Options of commands that run a model, and the model itself.
#pragma once

#include <string>
#include <vector>

#include "cli/command_line.h"
#include "ops/cpu_model.h"
#include "text/tokenizer.h"

namespace spear::cli {

struct ModelOptions {
  std::string model;
  std::string compensators = "on";
  std::string activations = "a16", head_type = "int8";
  KvCacheType kv_cache_type = KvCacheType::bf16;  ///< of ForwardModel::hidden_states
};

/// --model, --compensators, --activations and --head-dtype.
void add_model_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options);
/// The last two alone.
void add_kernel_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options);

/// --kv-cache-dtype.
void add_kv_cache_option(CLI::App& command, KvCacheType* type);

/// Reads a model for the online plane. Linears that a GGUF file holds quantized stay so, but for the oracle a32, which wants
/// them dense.
ModelWeights read_weights(const std::string& path, const ModelOptions& options);

/// Reads a model for the online plane and says so on stderr. Kernel options are those of `options`, the path is not.
CpuModel load_model(const std::string& path, bool compensators, const CommonOptions& common,
                    const ModelOptions& options = {});
/// The same for a model in memory; `name` is what stderr calls it.
CpuModel make_model(ModelWeights weights, const std::string& name, bool compensators, const CommonOptions& common,
                    const ModelOptions& options);

/// Takes the ways of fusing that `spear profile` measured for this model on this machine, if it did.
void use_measured_kernels(CpuModel& model, const ModelOptions& options);

inline bool wants_compensators(const ModelOptions& options) { return options.compensators == "on"; }

}  // namespace spear::cli
