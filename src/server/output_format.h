// What a request asks its output to be: JSON, JSON that fits a schema, calls of tools, or text.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "constrain/structured_output.h"
#include "text/tool_calls.h"

namespace spear {

struct OutputFormat {
  enum class Kind { text, json_object, json_schema, tool_calls };

  Kind kind = Kind::text;
  nlohmann::ordered_json schema;  ///< of json_schema
  bool strict = false;
  std::vector<ToolFunction> functions;  ///< that tool_calls may call
  std::vector<std::size_t> positions;   ///< of `functions` in the request's tools
  std::optional<ToolFormat> calls;      ///< calls are looked for in the output, as this format writes them
  bool parallel = true;                 ///< more than one call
  nlohmann::ordered_json tools;         ///< for the chat template; null: none

  bool constrained() const { return kind != Kind::text; }
};

/// Reads response_format, tools, tool_choice and parallel_tool_calls of a body that fits its schema. `model_calls`: how
/// the model writes calls, nothing where its chat template knows no tools. Throws ApiError(400).
OutputFormat output_format(const nlohmann::ordered_json& body, std::optional<ToolFormat> model_calls);

/// The grammar of a constrained format. Throws ApiError(400) whose param is the JSON pointer, within the request, of
/// what is malformed or not supported. Any thread; up to some tenths of a second for the largest schemas.
StructuredOutput::GrammarPtr compile(const OutputFormat& format, StructuredOutput& structured);

/// Checks tools as output_format does, for endpoints that only render them.
void check_tools(const nlohmann::ordered_json& tools, std::optional<ToolFormat> model_calls);

}  // namespace spear
