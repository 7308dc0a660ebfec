// A body from anybody, for every endpoint: checked against the published schema, and what it asks for read. It is refused
// with a 400 or understood; whatever is understood says the same when it is written down and read again.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "server/api_error.h"
#include "server/api_schema.h"
#include "server/output_format.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static constexpr const char* kSchemas[] = {"CompletionRequest", "ChatCompletionRequest", "TokenizeRequest", "DetokenizeRequest"};
  if (size < 1) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const char* schema = kSchemas[data[0] % 4];
  try {
    const auto value = checked_body(body, schema);
    if (checked_body(value.dump(), schema) != value) std::abort();
    const OutputFormat format = output_format(value, static_cast<ToolFormat>(data[0] / 4 % 4));
    if (format.functions.size() != format.positions.size()) std::abort();
    if (format.kind == OutputFormat::Kind::tool_calls && format.functions.empty()) std::abort();
  } catch (const ApiError& error) {
    if (error.status() != 400) std::abort();
    if (nlohmann::json::parse(error.response().body).at("error").at("message").empty()) std::abort();
  }
  return 0;
}
