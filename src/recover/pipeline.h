// `spear recover`, and each of its stages by itself.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "recover/plan.h"
#include "recover/recipe.h"

namespace spear {

struct RecoverOptions {
  std::filesystem::path reference;     ///< full-precision parent
  std::filesystem::path backbone;      ///< optional: a 4-bit checkpoint whose codes stay as they are
  std::filesystem::path out;
  std::filesystem::path workspace;     ///< empty: out + ".work", removed after success
  std::filesystem::path text;          ///< optional: text to measure on; else held-out samples
  std::filesystem::path calibration;   ///< optional: text that takes the place of half of the sampled sequences
  std::int64_t context = 1024, windows = 20;  ///< of `text`
  std::vector<std::filesystem::path> tasks;   ///< questions to answer before and after (eval/tasks.h)
  bool force = false, resume = false;
  std::string device = "auto";         ///< device_named() of torch/torch_tensors.h
  std::string command;                 ///< as typed, for the manifest
  Recipe recipe;
};

/// Runs every stage and writes the checkpoint and report.html. Returns the manifest.
/// Throws Error(interrupted) after a signal; the same call with resume ends in the identical artifact.
nlohmann::json recover(const RecoverOptions& options);

/// The quantizer alone: writes a checkpoint without compensators. Samples only if the quantizer needs inputs.
nlohmann::json quantize(const RecoverOptions& options);

/// The damage map alone: returns the manifest's "diagnosis" and prints nothing.
struct DiagnoseReport {
  Damage damage;
  nlohmann::json json;
};
DiagnoseReport diagnose_model(const RecoverOptions& options);

/// Throws Error(out_of_resources) before the first hour instead of in the last.
void preflight(const RecoverOptions& options, const ModelConfig& config, PlannedCommand command = PlannedCommand::recover);

}  // namespace spear
