// Formats of JSON Schema as patterns.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace spear::constrain {

/// Of date-time, date, time, uuid, email and ipv4; nothing for others.
std::optional<std::string> format_pattern(std::string_view name);

}  // namespace spear::constrain
