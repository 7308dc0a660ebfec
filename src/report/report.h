// spear.json in, one self-contained HTML page out: no network, no script, light and dark, any width.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace spear {

/// `manifest` follows spear.manifest/1 (docs/checkpoint.md); parts that are missing are left out of the page, and every
/// string is escaped. Throws Error(bad_input) naming the field when the schema is another or a part that is present has
/// the wrong type.
std::string render_report(const nlohmann::json& manifest);

}  // namespace spear
