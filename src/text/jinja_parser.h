// Tokens to statements and expressions; everything outside the supported subset is refused here, by name.
#pragma once

#include <string_view>

#include "text/jinja_ast.h"

namespace spear::jinja {

/// Throws Error(bad_input) with line and column.
Block parse(std::string_view source);

}  // namespace spear::jinja
