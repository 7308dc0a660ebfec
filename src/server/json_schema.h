// The part of JSON Schema in which the API describes its own requests: what is published is what is enforced.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace spear {

/// Levels of a request body, and of JSON that is text within it.
inline constexpr int kMaxBodyDepth = 64;

/// Parses a request body. Throws ApiError(400) for anything but one JSON value of at most kMaxBodyDepth levels whose
/// strings are UTF-8.
nlohmann::ordered_json parse_body(std::string_view body);

/// Throws ApiError(400) naming the first value that does not fit. Known words: type (one or several), enum, minimum,
/// maximum, exclusiveMinimum, minLength, maxLength, minItems, maxItems, maxProperties, items, properties, required,
/// additionalProperties (false or a schema), anyOf, $ref into `components`. A null is accepted for every property
/// that is not required.
void validate(const nlohmann::ordered_json& value, const nlohmann::json& schema, const nlohmann::json& components);

}  // namespace spear
