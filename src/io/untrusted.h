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

/// A JSON object from a file; throws Error(bad_input) naming the file and the byte where parsing stops.
nlohmann::json read_json_object(const std::filesystem::path& path, std::size_t max_bytes = 100'000'000);

/// Text from a file made fit for an error message: at most 80 bytes, control characters and non-ASCII as '?'.
std::string printable(std::string_view text);

}  // namespace spear
