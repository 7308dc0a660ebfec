// From what a request asks for to its grammar.
#include <fmt/format.h>

#include "server/api_error.h"
#include "server/output_format.h"

namespace spear {
namespace {

/// "#/tools/0/..." counts the functions of the grammar: as the request counts them.
std::string in_request(const OutputFormat& format, const std::string& where) {
  static const std::string kTools = "#/tools/";
  if (format.kind == OutputFormat::Kind::json_schema) {
    return "#/response_format/json_schema/schema" + (where.empty() ? where : where.substr(1));
  }
  if (!where.starts_with(kTools)) return "#/tools";
  std::size_t digits = 0;
  const std::size_t index = std::stoul(where.substr(kTools.size()), &digits);
  return kTools + std::to_string(format.positions.at(index)) + where.substr(kTools.size() + digits);
}

}  // namespace

StructuredOutput::GrammarPtr compile(const OutputFormat& format, StructuredOutput& structured) {
  try {
    switch (format.kind) {
      case OutputFormat::Kind::json_object:
        return structured.json_object();
      case OutputFormat::Kind::json_schema:
        return structured.json_schema(format.schema, format.strict);
      case OutputFormat::Kind::tool_calls:
        return structured.tool_calls(*format.calls, format.functions, format.parallel);
      case OutputFormat::Kind::text:
        break;
    }
    return nullptr;
  } catch (const Error& error) {
    const std::string where = in_request(format, error.where());
    throw bad_request(fmt::format("{}: {}{}", where, error.problem(), error.remedy().empty() ? "" : "; " + error.remedy()),
                      where, "invalid_schema");
  }
}

}  // namespace spear
