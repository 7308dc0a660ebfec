#include "constrain/schema_compiler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "constrain/number_range.h"
#include "constrain/pattern.h"
#include "constrain/string_formats.h"
#include "text/utf8.h"

namespace spear::constrain {
namespace {

constexpr std::uint64_t kLongestString = 16'384;  // counted strings; longer ones are never written
constexpr std::size_t kInlineLiterals = 16;

struct Limits {
  std::uint64_t least = 0;
  std::optional<std::uint64_t> most;
};

Limits limits_of(const Parts& parts, const char* minimum, const char* maximum) {
  Limits limits;
  for (const Part& part : parts) {
    limits.least = std::max(limits.least, count_keyword(part, minimum).value_or(0));
    const auto most = count_keyword(part, maximum);
    if (most && (!limits.most || *most < *limits.most)) limits.most = most;
  }
  return limits;
}

bool has(const Parts& parts, std::initializer_list<const char*> keywords) {
  return std::any_of(parts.begin(), parts.end(), [&](const Part& part) {
    return std::any_of(keywords.begin(), keywords.end(),
                       [&](const char* k) { return find_keyword(part, k) != nullptr; });
  });
}

/// Whether a number is larger in magnitude than any that is written. Integers are compared as such: as doubles, those
/// near the limit are equal to it.
bool is_beyond(const Json& value) {
  if (value.is_number_unsigned()) return value.get<std::uint64_t>() > static_cast<std::uint64_t>(kLargestInteger);
  if (value.is_number_integer()) {
    const auto number = value.get<std::int64_t>();
    return number < -kLargestInteger || number > kLargestInteger;
  }
  return !(std::abs(value.get<double>()) < 1e18);
}

double number_keyword(const Part& part, const char* keyword, const Json& value) {
  if (!value.is_number()) throw refuse_schema(part, keyword, "a number was expected");
  return value.get<double>();
}

}  // namespace

SchemaCompiler::SchemaCompiler(GrammarBuilder& builder, JsonRules& rules, const Json& root, const std::string& base,
                               bool strict)
    : builder_(builder), rules_(rules), reader_(root, base, strict), root_{&root, base} {}

RuleId SchemaCompiler::compile() {
  const RuleId root = rule_of({root_});
  while (!todo_.empty()) {
    const auto [rule, parts] = std::move(todo_.back());
    todo_.pop_back();
    const auto [start, end] = builder_.ends(rule);
    for (const Parts& alternative : reader_.alternatives(parts)) add_alternative(start, end, alternative);
  }
  return root;
}

/// The same schemas give the same rule: that ends recursion.
RuleId SchemaCompiler::rule_of(const Parts& parts) {
  if (parts.empty()) return rules_.value();
  std::vector<const Json*> key;
  for (const Part& part : parts) key.push_back(part.schema);
  std::sort(key.begin(), key.end());
  key.erase(std::unique(key.begin(), key.end()), key.end());
  const auto [found, fresh] = known_.try_emplace(std::move(key), 0);
  if (fresh) {
    found->second = builder_.add_rule();
    todo_.emplace_back(found->second, parts);
  }
  return found->second;
}

/// Short scalars in place, everything else as a call.
void SchemaCompiler::add_value(StateId from, StateId to, const Parts& parts) {
  const auto alternatives = reader_.alternatives(parts);
  const auto is_short = [](const Parts& alternative) {
    unsigned types = kAnyType;
    std::size_t literals = 0;
    for (const Part& part : alternative) {
      types &= types_of(part);
      if (const Json* values = find_keyword(part, "enum"); values != nullptr) literals += values->size();
    }
    if (literals > 0 || has(alternative, {"const"})) return literals <= kInlineLiterals;
    return (types & (kObject | kArray)) == 0 &&
           !has(alternative, {"pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
                              "exclusiveMaximum"});
  };
  if (alternatives.size() <= 4 && std::all_of(alternatives.begin(), alternatives.end(), is_short)) {
    for (const Parts& alternative : alternatives) add_alternative(from, to, alternative);
  } else {
    builder_.add_call(from, rule_of(parts), to);
  }
}

void SchemaCompiler::add_alternative(StateId from, StateId to, const Parts& parts) {
  unsigned types = kAnyType;
  for (const Part& part : parts) {
    if (part.schema->is_boolean()) return;  // false
    types &= types_of(part);
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (has({parts[i]}, {"enum", "const"})) return add_literals(from, to, parts, i);
  }
  if (types & kNull) builder_.add_text(from, "null", to);
  if (types & kBoolean) {
    builder_.add_text(from, "true", to);
    builder_.add_text(from, "false", to);
  }
  if (types & kString) add_string(from, to, parts);
  if (types & (kNumber | kInteger)) add_number(from, to, parts, (types & kNumber) == 0);
  if (types & kArray) add_array(from, to, parts);
  if (types & kObject) add_object(from, to, parts);
}

void SchemaCompiler::add_literals(StateId from, StateId to, const Parts& parts, std::size_t source) {
  const Part& part = parts[source];
  const Json* single = find_keyword(part, "const");
  const Json* list = find_keyword(part, "enum");
  if (list != nullptr && !list->is_array()) throw refuse_schema(part, "enum", "a list was expected");
  ByteNfa nfa;
  const auto add = [&](const Json& value) {
    if (std::all_of(parts.begin(), parts.end(),
                    [&](const Part& p) { return fits(value, p, &p == &part ? list : nullptr); })) {
      nfa.add_text(ByteNfa::kStart, value.dump(), ByteNfa::kEnd);
    }
  };
  if (single != nullptr) {
    add(*single);
  } else {
    for (const Json& value : *list) add(value);
  }
  nfa.embed(builder_, from, to);
}

/// Whether a value of the list `from` fits everything else.
bool SchemaCompiler::fits(const Json& value, const Part& part, const Json* from) const {
  const unsigned type = type_of(value);
  if ((types_of(part) & type) == 0) return false;
  if (const Json* single = find_keyword(part, "const"); single != nullptr && *single != value) return false;
  if (const Json* list = find_keyword(part, "enum");
      list != nullptr && (list != from || find_keyword(part, "const") != nullptr)) {
    if (!list->is_array()) throw refuse_schema(part, "enum", "a list was expected");
    if (std::find(list->begin(), list->end(), value) == list->end()) return false;
  }
  const auto refuse_beside = [&](std::initializer_list<const char*> keywords) {
    for (const char* keyword : keywords) {
      if (find_keyword(part, keyword) != nullptr)
        throw refuse_schema(part, keyword, "not supported beside enum or const", "leave one of them out");
    }
  };
  if (type == kString) {
    refuse_beside({"pattern", "format"});
    const std::uint64_t length = count_characters(value.get_ref<const std::string&>());
    return length >= count_keyword(part, "minLength").value_or(0) &&
           length <= count_keyword(part, "maxLength").value_or(length);
  }
  if (type & kNumber) {
    refuse_beside({"multipleOf"});
    const double number = value.get<double>();
    const auto compare = [&](const char* keyword, auto ok) {
      const Json* bound = find_keyword(part, keyword);
      return bound == nullptr || ok(number_keyword(part, keyword, *bound));
    };
    return compare("minimum", [&](double b) { return number >= b; }) &&
           compare("maximum", [&](double b) { return number <= b; }) &&
           compare("exclusiveMinimum", [&](double b) { return number > b; }) &&
           compare("exclusiveMaximum", [&](double b) { return number < b; });
  }
  if (type == kObject)
    refuse_beside({"properties", "required", "additionalProperties", "minProperties", "maxProperties"});
  if (type == kArray) refuse_beside({"items", "prefixItems", "minItems", "maxItems"});
  return true;
}

void SchemaCompiler::add_string(StateId from, StateId to, const Parts& parts) {
  const Limits length = limits_of(parts, "minLength", "maxLength");
  const Part* pattern_part = nullptr;
  std::string source;
  for (const Part& part : parts) {
    for (const char* keyword : {"pattern", "format"}) {
      const Json* value = find_keyword(part, keyword);
      if (value == nullptr) continue;
      if (!value->is_string()) throw refuse_schema(part, keyword, "a string was expected");
      std::string found = value->get<std::string>();
      if (std::string_view(keyword) == "format") {
        const auto known = format_pattern(found);
        if (!known)
          throw refuse_schema(part, "format", fmt::format("the format '{}' is not supported", found),
                              "use a pattern, or leave it out");
        found = *known;
      }
      if (pattern_part != nullptr && found != source)
        throw refuse_schema(part, keyword, "a second pattern or format is not supported", "leave one of them out");
      pattern_part = &part;
      source = found;
    }
  }
  if (pattern_part != nullptr) {
    const Pattern pattern(source, append_pointer(pattern_part->pointer, "pattern"));
    if (pattern.shortest() < length.least || (length.most && pattern.longest() > *length.most)) {
      throw refuse_schema(*pattern_part, "pattern",
                          "minLength and maxLength beside a pattern that does not keep them already are not supported",
                          "say the length in the pattern: ^.{1,20}$");
    }
    ByteNfa nfa;
    const StateId inside = nfa.add_text(ByteNfa::kStart, "\""), end = nfa.add_state();
    pattern.add_to(nfa, inside, end);
    nfa.add_text(end, "\"", ByteNfa::kEnd);
    return nfa.embed(builder_, from, to);
  }
  if (length.least == 0 && !length.most) return builder_.add_call(from, rules_.string(), to);
  if (length.least > kLongestString)
    throw refuse_schema(parts.front(), "minLength", fmt::format("more than {} is not supported", kLongestString));
  if (length.most && *length.most < length.least) return;
  std::optional<std::uint32_t> most;
  if (length.most) most = static_cast<std::uint32_t>(std::min(*length.most, kLongestString));
  const StateId end = builder_.add_state();
  builder_.add_chain(builder_.add_text(from, "\""), rules_.character(), static_cast<std::uint32_t>(length.least), most,
                     end);
  builder_.add_text(end, "\"", to);
}

void SchemaCompiler::add_number(StateId from, StateId to, const Parts& parts, bool integer) {
  Bound low{-kLargestInteger}, high{kLargestInteger};
  bool bounded = false;
  for (const Part& part : parts) {
    if (const Json* step = find_keyword(part, "multipleOf"); step != nullptr && !(integer && *step == 1)) {
      throw refuse_schema(part, "multipleOf", "not supported", "leave it out, or check it in the answer");
    }
    for (const char* keyword : {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
      const Json* value = find_keyword(part, keyword);
      if (value == nullptr) continue;
      bounded = true;
      const bool lower = std::string_view(keyword).ends_with("inimum");
      bool exclusive = std::string_view(keyword).starts_with("exclusive");
      const double number = number_keyword(part, keyword, *value);
      Bound bound{0, exclusive};
      if (is_beyond(*value)) {
        if ((number > 0) == lower) return;  // beyond what is written
        continue;
      }
      if (value->is_number_integer()) {
        bound.value = value->get<std::int64_t>();
      } else if (number == std::floor(number)) {
        bound.value = static_cast<std::int64_t>(number);
      } else if (integer) {
        bound = {static_cast<std::int64_t>(lower ? std::ceil(number) : std::floor(number)), false};
      } else {
        throw refuse_schema(part, keyword, "bounds of numbers that are not whole are not supported",
                            "use a whole bound, or integer");
      }
      const bool tighter = lower ? bound.value > low.value : bound.value < high.value;
      Bound& current = lower ? low : high;
      if (tighter) {
        current = bound;
      } else if (bound.value == current.value) {
        current.exclusive |= bound.exclusive;
      }
    }
  }
  if (!bounded) return builder_.add_call(from, integer ? rules_.integer() : rules_.number(), to);
  ByteNfa nfa;
  if (integer) {
    add_integers(nfa, ByteNfa::kStart, ByteNfa::kEnd, low.value + low.exclusive, high.value - high.exclusive);
  } else {
    add_numbers(nfa, ByteNfa::kStart, ByteNfa::kEnd, low, high);
  }
  nfa.embed(builder_, from, to);
}

Grammar compile_schema(const Json& schema, bool strict, GrammarLimits limits) {
  GrammarBuilder builder(limits);
  JsonRules rules(builder);
  const RuleId root = SchemaCompiler(builder, rules, schema, "#", strict).compile();
  return builder.build(root);
}

Grammar any_object() {
  GrammarBuilder builder;
  JsonRules rules(builder);
  const RuleId root = rules.object();
  return builder.build(root);
}

}  // namespace spear::constrain
