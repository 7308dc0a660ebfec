// What a server asks for: grammars of schemas and of tool calls, made ready for its model's vocabulary.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "constrain/matcher.h"
#include "constrain/schema_keywords.h"
#include "text/tool_calls.h"

namespace spear {

class Tokenizer;

/// A function that a model may call; `parameters` is a JSON schema, null for any object.
struct ToolFunction {
  std::string name;
  nlohmann::ordered_json parameters;
  bool strict = false;
};

/// Any thread. Grammars are remembered by their text, the last kMostGrammars of them.
class StructuredOutput {
 public:
  /// Sorts the vocabulary: some tens of milliseconds.
  explicit StructuredOutput(const Tokenizer& tokenizer);

  using GrammarPtr = std::shared_ptr<const constrain::TokenGrammar>;

  /// Any JSON object: response_format json_object.
  GrammarPtr json_object();
  /// Throws Error(bad_input) whose where() is the JSON pointer of what is malformed or not supported.
  GrammarPtr json_schema(const nlohmann::ordered_json& schema, bool strict = false);
  /// One call of one of the functions, or with `parallel` one or more, as the model writes them: tool_choice required
  /// (all functions) or a name (that one). Throws as json_schema.
  GrammarPtr tool_calls(ToolFormat format, const std::vector<ToolFunction>& functions, bool parallel);

 private:
  static constexpr std::size_t kMostGrammars = 32;

  GrammarPtr find_or_make(std::string key, const std::function<constrain::Grammar()>& make);

  std::shared_ptr<const constrain::Vocabulary> vocabulary_;
  std::mutex mutex_;
  std::list<std::pair<std::string, GrammarPtr>> recent_;  // last used first
  std::unordered_map<std::string, std::list<std::pair<std::string, GrammarPtr>>::iterator> index_;
};

}  // namespace spear
