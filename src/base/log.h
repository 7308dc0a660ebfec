// Logging goes to stderr, data to stdout. The only place that knows spdlog.
#pragma once

#include <spdlog/spdlog.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace spear::log {

/// Sets up the stderr logger; `quiet` leaves warnings and errors only. Colours follow NO_COLOR and the terminal.
void init(bool quiet);

/// One JSON object per line from here on: "time", "level", "message", and the fields of event().
void use_json();

/// A line of fields: `name key=value ...`, or members of a JSON object.
using Fields = std::vector<std::pair<std::string, std::string>>;
void event(std::string_view name, const Fields& fields);

using spdlog::error;
using spdlog::info;
using spdlog::warn;

}  // namespace spear::log
