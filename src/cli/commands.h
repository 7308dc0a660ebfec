// The commands of `spear`; one file each.
#pragma once

#include <array>

#include "cli/command_line.h"

namespace spear::cli {

void add_generate(CommandLine& line);
void add_eval(CommandLine& line);
void add_bench(CommandLine& line);
void add_profile(CommandLine& line);
void add_simulate(CommandLine& line);
void add_inspect(CommandLine& line);
void add_export(CommandLine& line);
void add_report(CommandLine& line);
void add_tokenize(CommandLine& line);
void add_serve(CommandLine& line);
void add_version(CommandLine& line);
void add_completions(CommandLine& line);

/// A command that lives in libexec/spear/spear-offline, because it needs libtorch.
struct OfflineCommand {
  const char* name;
  const char* purpose;
};
inline constexpr std::array kOfflineCommands = {
    OfflineCommand{"recover", "Make a 4-bit model with compensators from a full-precision one"},
    OfflineCommand{"quantize", "Quantize a model to 4 bit"},
    OfflineCommand{"diagnose", "Measure which modules quantization damages most"},
    OfflineCommand{"calibrate", "Train compensators for a 4-bit model that exists already"},
};

/// Each replaces this process by spear-offline with the same arguments; Error(failed) when that was not built.
void add_offline_commands(CommandLine& line, char** argv);

}  // namespace spear::cli
