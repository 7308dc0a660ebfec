// Flags of the offline commands, and the RecoverOptions that follow from them.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "recover/pipeline.h"

namespace spear::cli {

struct OfflineOptions {
  std::shared_ptr<CommonOptions> common = std::make_shared<CommonOptions>();
  std::string model, backbone, out, workspace, text, calibration, command_line;
  std::string preset = "quick", scheme = "w4-channel-sym", quantizer = "tuned", budget = "1%", placement;
  std::string rotation;  ///< empty: what goes with the quantizer and the model
  std::string latency_table, device = "auto";
  std::string tune;  ///< empty: what goes with the quantizer
  std::vector<std::string> tasks;
  std::uint64_t seed = 0;
  std::int64_t context = 1024, windows = 20;
  std::optional<std::int64_t> gate_hidden, gate_rows, steps, sample_sequences, quantizer_sequences, quantizer_length;
  std::optional<double> alpha, rho, code_margin, code_rate, factor_rate, scale_rate;
  bool separate_a = false, force = false, resume = false, dry_run = false;

  void add_model(CLI::App& command, const std::string& help);
  void add_reference(CLI::App& command);
  void add_device(CLI::App& command);
  void add_backbone(CLI::App& command, bool as_model);
  void add_output(CLI::App& command);
  void add_workspace(CLI::App& command);
  void add_recipe(CLI::App& command);
  void add_measure(CLI::App& command);

  /// Throws Error(usage) naming the flag that makes no sense.
  RecoverOptions resolve() const;
};

/// "1%", "0.8 %" or "0.008" -> 0.008..; Throws Error(usage) outside 0..0.2.
double parse_budget(const std::string& text);

}  // namespace spear::cli
