// What the offline commands print for people.
#pragma once

#include <nlohmann/json.hpp>

#include "cli/command_line.h"
#include "recover/pipeline.h"

namespace spear::cli {

/// Before/after table with intervals, bytes, gap recovered.
void print_results(const nlohmann::json& manifest);
/// Base bytes, compensators, bits per weight.
void print_bytes(const nlohmann::json& manifest);
/// --dry-run: stages, bytes, memory, disk. Returns the exit code.
int print_plan(const RecoverOptions& options, PlannedCommand command, const CommonOptions& common);

}  // namespace spear::cli
