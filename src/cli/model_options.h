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
  std::string compensators = "on";  ///< on, off, a density, or a word of add_compensators_option()
  std::string activations = "a16", head_type = "int8", device = "cpu";
  KvCacheType kv_cache_type = KvCacheType::bf16;  ///< of ForwardModel::hidden_states

  double density() const;  ///< part of the compensators that is applied, 0 to 1
};

/// --compensators: on, off, a density, or `also`, a word for all of them.
void add_compensators_option(CLI::App& command, const std::shared_ptr<ModelOptions>& options, const std::string& also = {});

/// --model, --compensators and those of add_kernel_options().
void add_model_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options);
/// --activations, --device and --head-dtype.
void add_kernel_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options);

/// --kv-cache-dtype.
void add_kv_cache_option(CLI::App& command, KvCacheType* type);

/// Reads a model for the online plane. Linears that a GGUF file holds quantized stay so, but for the oracle a32, which wants
/// them dense.
ModelWeights read_weights(const std::string& path, const ModelOptions& options);

/// Reads a model for the online plane and says so on stderr. Density and kernel options are those of `options`, the path is not.
CpuModel load_model(const std::string& path, const CommonOptions& common, const ModelOptions& options = {});
/// The same for a model in memory that came from `path`; elsewhere, `path` is what stderr calls it.
CpuModel make_model(ModelWeights weights, const std::string& path, const CommonOptions& common, const ModelOptions& options);

/// Tells the model which compensators are worth most, by the damage in the manifest of the checkpoint at `path`, if it has one.
void order_compensators(CpuModel& model, const std::string& path);
/// Bytes of the compensators that the density of `options` keeps.
std::int64_t kept_compensator_bytes(const CpuModel& model, const ModelOptions& options);

/// Takes the ways of fusing that `spear profile` measured for this model on this machine, if it did.
void use_measured_kernels(CpuModel& model, const ModelOptions& options);

}  // namespace spear::cli
