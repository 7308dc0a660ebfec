// Results of stages, kept beside the output while it is being made. Each is filed under a hash of everything it depends
// on, so a finished stage is found again by --resume, and by other runs that share the folder (scripts/ablation).
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "io/safetensors.h"

namespace spear {

class Workspace {
 public:
  /// Creates the folder if needed.
  explicit Workspace(std::filesystem::path folder);

  /// `inputs` is everything that the stage's result depends on. Damaged or missing entries are nullopt.
  std::optional<Safetensors> load(const std::string& stage, const nlohmann::json& inputs) const;
  void save(const std::string& stage, const nlohmann::json& inputs, const TensorMap& tensors, const nlohmann::json& notes = nullptr) const;
  std::optional<nlohmann::json> load_json(const std::string& stage, const nlohmann::json& inputs) const;
  void save_json(const std::string& stage, const nlohmann::json& inputs, const nlohmann::json& value) const;
  void remove(const std::string& stage, const nlohmann::json& inputs) const;

  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path file(const std::string& stage, const nlohmann::json& inputs, const char* extension) const;

  std::filesystem::path folder_;
};

}  // namespace spear
