// Runs a parsed template.
#pragma once

#include <string>

#include "text/jinja_ast.h"

namespace spear::jinja {

/// `variables` are the globals. Throws Error(bad_input) with line and column.
std::string interpret(const Block& root, const nlohmann::ordered_json& variables, const TemplateLimits& limits);

}  // namespace spear::jinja
