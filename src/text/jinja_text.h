// Filters and methods of texts.
#pragma once

#include <string>

#include "text/jinja_builtins.h"

namespace spear::jinja {

/// Removes white space, or the given characters if there are any. `side`: -1 left, 1 right, 0 both.
Value strip(const Value& input, const Value* characters, int side, Budget& budget);
Value change_case(const Value& input, bool upper, Budget& budget);
/// (old, new[, count])
Value replace(const Value& input, const Arguments& arguments, Budget& budget);
/// ([separator[, limit]])
Value split(const Value& input, const Arguments& arguments, Budget& budget);
Value join(const Value& items, const std::string& separator, Budget& budget);
bool starts_or_ends(const Value& input, const Arguments& arguments, bool starts);

}  // namespace spear::jinja
