#include "constrain/structured_output.h"

#include <fmt/format.h>

#include "constrain/json_rules.h"
#include "constrain/schema_compiler.h"
#include "text/tokenizer.h"

namespace spear {
namespace {

using namespace constrain;

/// {"name": "f", "arguments": {...}} of any of the functions.
RuleId add_call_rule(GrammarBuilder& builder, JsonRules& rules, const std::vector<ToolFunction>& functions,
                     const char* arguments) {
  const RuleId rule = builder.add_rule();
  const auto [start, end] = builder.ends(rule);
  const auto add_key = [&](StateId from, const std::string& key) {
    return rules.add_space(builder.add_text(from, fmt::format("\"{}\":", key)));
  };
  const StateId name = add_key(rules.add_space(builder.add_text(start, "{")), "name");
  for (std::size_t i = 0; i < functions.size(); ++i) {
    const StateId named = builder.add_text(name, Json(functions[i].name).dump());
    const StateId value = add_key(rules.add_space(builder.add_text(named, ",")), arguments),
                  behind = builder.add_state();
    RuleId parameters = 0;
    if (functions[i].parameters.is_null()) {
      parameters = rules.object();
    } else {
      SchemaCompiler compiler(builder, rules, functions[i].parameters, fmt::format("#/tools/{}/function/parameters", i),
                              functions[i].strict);
      parameters = compiler.compile();
    }
    builder.add_call(value, parameters, behind);
    builder.add_text(rules.add_space(behind), "}", end);
  }
  return rule;
}

Grammar tool_grammar(ToolFormat format, const std::vector<ToolFunction>& functions, bool parallel) {
  if (functions.empty()) throw bad_input("there is no function to call", "#/tools", "name one at least");
  GrammarBuilder builder;
  JsonRules rules(builder);
  const RuleId call =
      add_call_rule(builder, rules, functions, format == ToolFormat::llama3 ? "parameters" : "arguments");
  const RuleId root = builder.add_rule();
  const auto [start, end] = builder.ends(root);
  const StateId behind = builder.add_state();
  const ToolTags tags = tool_tags(format);
  switch (format) {
    case ToolFormat::hermes:
      builder.add_call(builder.add_text(start, tags.open + "\n"), call, behind);
      {
        const StateId closed = builder.add_text(behind, "\n" + tags.close);
        builder.add_jump(closed, end);
        if (parallel) builder.add_call(builder.add_text(closed, "\n" + tags.open + "\n"), call, behind);
      }
      break;
    case ToolFormat::smollm:
    case ToolFormat::mistral: {
      const StateId item = rules.add_space(builder.add_text(start, tags.open + "["));
      builder.add_call(item, call, behind);
      if (parallel) builder.add_jump(rules.add_space(builder.add_text(behind, ",")), item);
      builder.add_text(rules.add_space(behind), "]" + tags.close, end);
      break;
    }
    case ToolFormat::llama3:
      builder.add_call(start, call, behind);
      builder.add_jump(behind, end);
      if (parallel) builder.add_call(builder.add_text(behind, "; "), call, behind);
      break;
  }
  return builder.build(root);
}

}  // namespace

StructuredOutput::StructuredOutput(const Tokenizer& tokenizer)
    : vocabulary_(std::make_shared<constrain::Vocabulary>(tokenizer)) {}

StructuredOutput::GrammarPtr StructuredOutput::json_object() {
  return find_or_make("object", [] { return any_object(); });
}

StructuredOutput::GrammarPtr StructuredOutput::json_schema(const Json& schema, bool strict) {
  return find_or_make((strict ? "strict " : "schema ") + schema.dump(), [&] { return compile_schema(schema, strict); });
}

StructuredOutput::GrammarPtr StructuredOutput::tool_calls(ToolFormat format, const std::vector<ToolFunction>& functions,
                                                          bool parallel) {
  std::string key = fmt::format("tools {} {}", static_cast<int>(format), parallel);
  for (const ToolFunction& function : functions) {
    key += fmt::format(" {} {} {}", function.strict, Json(function.name).dump(), function.parameters.dump());
  }
  return find_or_make(std::move(key), [&] { return tool_grammar(format, functions, parallel); });
}

StructuredOutput::GrammarPtr StructuredOutput::find_or_make(std::string key, const std::function<Grammar()>& make) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = index_.find(key); found != index_.end()) {
      recent_.splice(recent_.begin(), recent_, found->second);
      return recent_.front().second;
    }
  }
  auto grammar = std::make_shared<const TokenGrammar>(make(), vocabulary_);
  const std::lock_guard lock(mutex_);
  if (index_.contains(key)) return grammar;  // somebody was quicker
  recent_.emplace_front(key, grammar);
  index_.emplace(std::move(key), recent_.begin());
  if (recent_.size() > kMostGrammars) {
    index_.erase(recent_.back().first);
    recent_.pop_back();
  }
  return grammar;
}

}  // namespace spear
