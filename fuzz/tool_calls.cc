// A model's output: the same calls and the same text however it is cut.
#include "text/tool_calls.h"

#include <cstdint>
#include <cstdlib>
#include <string>

using namespace spear;

namespace {

struct Parsed {
  std::string text;
  std::vector<std::string> calls;
  bool operator==(const Parsed&) const = default;
};

Parsed parse(ToolFormat format, std::string_view text, std::size_t piece) {
  ToolCallParser parser(format, 1);
  Parsed parsed;
  const auto add = [&](ToolCallParser::Output output) {
    parsed.text += output.text;
    for (const ToolCall& call : output.calls) parsed.calls.push_back(call.id + call.name + call.arguments);
  };
  for (std::size_t at = 0; at < text.size(); at += piece) add(parser.push(text.substr(at, piece)));
  add(parser.finish());
  return parsed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto format = static_cast<ToolFormat>(data[0] % 4);
  const std::size_t piece = data[1] % 16 + 1;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  if (text.empty()) return 0;
  if (!(parse(format, text, piece) == parse(format, text, text.size()))) std::abort();
  return 0;
}
