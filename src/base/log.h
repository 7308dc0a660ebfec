// Logging goes to stderr, data to stdout. The only place that knows spdlog.
#pragma once

#include <spdlog/spdlog.h>

namespace spear::log {

/// Sets up the stderr logger; `quiet` leaves warnings and errors only. Colours follow NO_COLOR and the terminal.
void init(bool quiet);

using spdlog::error;
using spdlog::info;
using spdlog::warn;

}  // namespace spear::log
