// The API's own description: one text from which requests are checked and /openapi.json is made.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace spear {

/// Schemas by name ("CompletionRequest", "ChatCompletionRequest", "TokenizeRequest", "DetokenizeRequest", ...).
const nlohmann::json& api_components();

/// Parses and checks a body against one of them. Throws ApiError(400).
nlohmann::ordered_json checked_body(std::string_view body, const std::string& schema);

/// The OpenAPI 3.1 document.
nlohmann::json openapi_document(const std::string& version);

}  // namespace spear
