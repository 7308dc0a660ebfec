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
};

/// --model and --compensators.
void add_model_options(CLI::App& command, const std::shared_ptr<ModelOptions>& options);

/// --kv-cache-dtype.
void add_kv_cache_option(CLI::App& command, KvCacheType* type);

/// Reads a model for the online plane and says so on stderr. `kv_cache_type` is that of ForwardModel::hidden_states.
CpuModel load_model(const std::string& path, bool compensators, const CommonOptions& common,
                    KvCacheType kv_cache_type = KvCacheType::f32);

inline bool wants_compensators(const ModelOptions& options) { return options.compensators == "on"; }

}  // namespace spear::cli
