// JSON Schema to a grammar.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "constrain/grammar.h"
#include "constrain/json_rules.h"
#include "constrain/schema_keywords.h"

namespace spear::constrain {

/// One schema document. Objects are written in the order of their properties, then required names without a schema,
/// then additional ones. `root` must outlive the compiler.
class SchemaCompiler {
 public:
  /// `base` is the pointer of the root in errors, "#" or longer.
  SchemaCompiler(GrammarBuilder& builder, JsonRules& rules, const Json& root, const std::string& base, bool strict);

  /// The rule of a value that fits the root. Throws Error(bad_input) with the pointer of whatever is malformed or not
  /// supported.
  RuleId compile();

 private:
  RuleId rule_of(const Parts& parts);
  void add_value(StateId from, StateId to, const Parts& parts);
  void add_alternative(StateId from, StateId to, const Parts& parts);
  void add_literals(StateId from, StateId to, const Parts& parts, std::size_t source);
  bool fits(const Json& value, const Part& part, const Json* from) const;
  void add_string(StateId from, StateId to, const Parts& parts);
  void add_number(StateId from, StateId to, const Parts& parts, bool integer);
  void add_array(StateId from, StateId to, const Parts& parts);
  void add_object(StateId from, StateId to, const Parts& parts);
  void add_other_key(StateId from, StateId to, const std::vector<std::string>& names);

  GrammarBuilder& builder_;
  JsonRules& rules_;
  SchemaReader reader_;
  Part root_;
  std::map<std::vector<const Json*>, RuleId> known_;
  std::vector<std::pair<RuleId, Parts>> todo_;
};

/// Throws as SchemaCompiler::compile.
Grammar compile_schema(const Json& schema, bool strict = false, GrammarLimits limits = {});

/// Any JSON object.
Grammar any_object();

}  // namespace spear::constrain
