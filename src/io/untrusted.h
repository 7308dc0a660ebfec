// Small checks that every reader of outside bytes shares.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "tensor/tensor.h"

namespace spear {

/// element_count with the file and tensor in the error.
std::int64_t checked_element_count(const Shape& shape, const std::string& where);

/// A JSON document. Throws Error(bad_input) naming `where` for syntax errors, numbers beyond double's range, nesting
/// beyond 64 levels (whoever copies or writes a value recurses) and, with `unique_keys`, for a key that an object has
/// twice (two readers might take different ones).
nlohmann::json parse_json(std::string_view text, const std::string& where, bool unique_keys = true);

/// A JSON object from a file, by parse_json.
nlohmann::json read_json_object(const std::filesystem::path& path, std::size_t max_bytes = 100'000'000);

/// Text from a file made fit for an error message: at most 80 bytes, control characters and non-ASCII as '?'.
std::string printable(std::string_view text);

}  // namespace spear
