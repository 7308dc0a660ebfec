// Runs a parsed template.
#pragma once

#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "text/jinja_ast.h"

namespace spear::jinja {

/// Global variables by name. Pointers, because copying JSON recurses, and its depth isn't known yet.
using Variables = std::map<std::string, const nlohmann::ordered_json*>;

/// `date`: the present. Throws Error(bad_input) with line and column.
std::string interpret(const Block& root, const Variables& variables, const TemplateLimits& limits, const std::tm& date);

}  // namespace spear::jinja
