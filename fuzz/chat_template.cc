// A chat template from anybody, rendered on conversations with tools, within limits.
#include "text/chat_template.h"

#include <nlohmann/json.hpp>

#include "fuzz_file.h"

using namespace spear;

namespace {

const nlohmann::ordered_json& conversation() {
  static const auto json = nlohmann::ordered_json::parse(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?\n"},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
      "function": {"name": "add", "arguments": {"a": 2, "b": [1, 2.5, true, null]}}}]},
    {"role": "tool", "name": "add", "content": "4 < 5 & 'x'"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour."},
    {"role": "user", "content": [{"type": "text", "text": "naïve 日本 🙂"}]}])");
  return json;
}

const nlohmann::ordered_json& extra() {
  static const auto json = nlohmann::ordered_json::parse(R"({"enable_thinking": true, "n": 3, "tools": [
    {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {"type": "object",
      "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}]})");
  return json;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const TemplateLimits limits{.source_bytes = 1 << 16, .output_bytes = 1 << 16, .steps = 50'000};
  fuzz::survives([&] {
    const ChatTemplate chat(fuzz::as_text(data, size), limits);
    fuzz::survives([&] {
      if (chat.render(conversation(), true, {{"bos_token", "<s>"}, {"eos_token", "</s>"}}, extra()).size() >
          limits.output_bytes)
        std::abort();
    });
    fuzz::survives([&] { (void)chat.render(nlohmann::ordered_json::array(), false, {}); });
  });
  return 0;
}
