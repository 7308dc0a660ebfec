// Tool calls in a model's output: found while it arrives, everything else passed on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace spear {

/// hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, repeated (Hermes, Qwen)
/// smollm: <tool_call>[{"name": ..., "arguments": {...}}, ...]</tool_call>
/// llama3: {"name": ..., "parameters": {...}}, the whole output; several with ";" between
/// mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
enum class ToolFormat { hermes, smollm, llama3, mistral };

/// "hermes", "smollm", "llama3_json", "mistral".
const char* name(ToolFormat format);
std::optional<ToolFormat> tool_format(std::string_view name);
/// The format that a chat template speaks of, if it knows tools.
std::optional<ToolFormat> detect_tool_format(std::string_view chat_template);

struct ToolTags {
  std::string open, close;  ///< empty: none
};
/// Some tokenizers have these as special tokens: whoever decodes must not skip them.
ToolTags tool_tags(ToolFormat format);

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  ///< a JSON object, as text
};

/// Reads either argument name and one call or a list in every format. Whatever turns out to be no call is passed on as
/// the text that it is.
class ToolCallParser {
 public:
  /// `seed` makes ids; they are unlike each other for different seeds.
  ToolCallParser(ToolFormat format, std::uint64_t seed);

  struct Output {
    std::string text;
    std::vector<ToolCall> calls;
  };

  /// What is certain after this piece of text: the beginning of a tag or a call is held back.
  Output push(std::string_view piece);
  /// The rest. A call whose JSON is complete counts without its closing tag.
  Output finish();

 private:
  enum class State { text, json, closing };

  void run(bool last, Output& out);
  bool run_text(bool last, Output& out);
  bool run_json(bool last, Output& out);
  bool run_closing(bool last, Output& out);
  void give_up(Output& out);
  void give(std::size_t count, Output& out);
  void restart();
  bool read_calls(std::string_view json, std::vector<ToolCall>& calls);
  std::string new_id();

  ToolFormat format_;
  ToolTags tags_;
  std::uint64_t random_;
  State state_ = State::text;
  std::string held_;       // not given out: from the opening tag on, outside of State::text
  std::size_t at_ = 0;     // read so far
  std::size_t begin_ = 0;  // of the JSON
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false;
  bool any_text_ = false, after_call_ = false;
};

}  // namespace spear
