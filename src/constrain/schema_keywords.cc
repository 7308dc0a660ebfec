#include "constrain/schema_keywords.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace spear::constrain {
namespace {

constexpr std::size_t kMostAlternatives = 256;
constexpr std::size_t kMostDrafts = 2048;
constexpr std::size_t kMostDepth = 64;
constexpr std::size_t kMostParts = 256;
constexpr std::size_t kMostMembers = 2000;  // of properties, required and enum: bounds what is quadratic in them

constexpr std::array kKnown = {"type",
                               "enum",
                               "const",
                               "properties",
                               "required",
                               "additionalProperties",
                               "minProperties",
                               "maxProperties",
                               "items",
                               "prefixItems",
                               "minItems",
                               "maxItems",
                               "minLength",
                               "maxLength",
                               "pattern",
                               "format",
                               "minimum",
                               "maximum",
                               "exclusiveMinimum",
                               "exclusiveMaximum",
                               "multipleOf",
                               "anyOf",
                               "oneOf",
                               "allOf",
                               "$ref",
                               "nullable",
                               "uniqueItems"};
// Say nothing about what is valid.
constexpr std::array kNotes = {"title",     "description", "default", "examples", "example", "deprecated",  "readOnly",
                               "writeOnly", "$schema",     "$id",     "$comment", "$defs",   "definitions", "$anchor"};

template <std::size_t N>
bool among(const std::array<const char*, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string decode_percent(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto hex = [](char c) {
      return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 87 : -1;
    };
    if (text[i] == '%' && i + 2 < text.size() && hex(text[i + 1]) >= 0 && hex(text[i + 2]) >= 0) {
      out += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

Error refuse_schema(const Part& part, const char* keyword, const std::string& problem, const std::string& remedy) {
  return bad_input(problem, *keyword == '\0' ? part.pointer : append_pointer(part.pointer, keyword), remedy);
}

std::string append_pointer(const std::string& pointer, const std::string& token) {
  std::string out = pointer + "/";
  for (const char c : token) {
    if (c == '~') {
      out += "~0";
    } else if (c == '/') {
      out += "~1";
    } else {
      out += c;
    }
  }
  return out;
}

const Json* find_keyword(const Part& part, const char* keyword) {
  if (!part.schema->is_object()) return nullptr;
  const auto found = part.schema->find(keyword);
  return found == part.schema->end() ? nullptr : &*found;
}

std::optional<std::uint64_t> count_keyword(const Part& part, const char* keyword) {
  const Json* value = find_keyword(part, keyword);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<std::uint64_t>();
  if (value->is_number_float()) {
    const double number = value->get<double>();
    if (number >= 0 && number < 1e15 && number == std::floor(number)) return static_cast<std::uint64_t>(number);
  }
  throw refuse_schema(part, keyword, "a whole number of at least 0 was expected");
}

unsigned type_of(const Json& value) {
  if (value.is_null()) return kNull;
  if (value.is_boolean()) return kBoolean;
  if (value.is_object()) return kObject;
  if (value.is_array()) return kArray;
  if (value.is_string()) return kString;
  if (value.is_number_float() && value.get<double>() != std::floor(value.get<double>())) return kNumber;
  return kNumber | kInteger;
}

unsigned types_of(const Part& part) {
  const Json* type = find_keyword(part, "type");
  if (type == nullptr) return kAnyType;
  const auto one = [&](const Json& name) -> unsigned {
    const std::string text = name.is_string() ? name.get<std::string>() : "";
    if (text == "null") return kNull;
    if (text == "boolean") return kBoolean;
    if (text == "object") return kObject;
    if (text == "array") return kArray;
    if (text == "number") return kNumber | kInteger;
    if (text == "string") return kString;
    if (text == "integer") return kInteger;
    throw refuse_schema(part, "type",
                        "null, boolean, object, array, number, integer, string or a list of them was expected");
  };
  unsigned types = 0;
  if (type->is_array()) {
    for (const Json& name : *type) types |= one(name);
  } else {
    types = one(*type);
  }
  const Json* nullable = find_keyword(part, "nullable");
  if (nullable != nullptr && !nullable->is_boolean())
    throw refuse_schema(part, "nullable", "true or false was expected");
  return nullable != nullptr && nullable->get<bool>() ? types | kNull : types;
}

/// Every keyword of the schema: known, or refused.
void SchemaReader::check(const Part& part) const {
  for (const auto& [name, value] : part.schema->items()) {
    if (among(kKnown, name) || among(kNotes, name) || name.starts_with("x-")) continue;
    throw refuse_schema(part, name.c_str(), "this keyword is not supported", "leave it out, or check it in the answer");
  }
  for (const char* keyword : {"properties", "required", "enum"}) {
    const Json* list = find_keyword(part, keyword);
    if (list != nullptr && list->size() > kMostMembers)
      throw refuse_schema(part, keyword, fmt::format("more than {} members", kMostMembers), "use fewer");
  }
  if (const Json* unique = find_keyword(part, "uniqueItems"); unique != nullptr && *unique != false) {
    throw refuse_schema(part, "uniqueItems", "unique items are not supported",
                        "leave it out, or check it in the answer");
  }
  if (strict_) check_strict(part);
}

/// OpenAI's rules for "strict": true.
void SchemaReader::check_strict(const Part& part) const {
  const Json* properties = find_keyword(part, "properties");
  const Json* type = find_keyword(part, "type");
  if (properties == nullptr && (type == nullptr || *type != "object")) return;
  const Json* additional = find_keyword(part, "additionalProperties");
  if (additional == nullptr || *additional != false) {
    throw refuse_schema(part, "additionalProperties", "strict needs additionalProperties: false in every object",
                        "add it, or leave strict out");
  }
  if (properties == nullptr || !properties->is_object()) return;
  const Json* required = find_keyword(part, "required");
  for (const auto& [name, schema] : properties->items()) {
    if (required == nullptr || !required->is_array() ||
        std::find(required->begin(), required->end(), name) == required->end()) {
      throw refuse_schema(part, "required",
                          fmt::format("strict needs every property to be required, and '{}' is not", name),
                          "require it and let it be null, or leave strict out");
    }
  }
}

Part SchemaReader::resolve(const Part& part) const {
  const Json& ref = part.schema->at("$ref");
  if (!ref.is_string()) throw refuse_schema(part, "$ref", "a string was expected");
  const auto& text = ref.get_ref<const std::string&>();
  if (text != "#" && !text.starts_with("#/")) {
    throw refuse_schema(part, "$ref", "only references within the schema, '#/...', are supported",
                        "copy what it names into $defs");
  }
  const std::string path = decode_percent(std::string_view(text).substr(1));
  try {
    const Json& target = root_.at(Json::json_pointer(path));
    return {&target, base_ + path};
  } catch (const Json::exception&) {
    throw refuse_schema(part, "$ref", fmt::format("'{}' is nowhere in the schema", text));
  }
}

void SchemaReader::flatten(const Part& part, std::vector<const Json*>& ancestors, Draft& draft) const {
  if (part.schema->is_boolean()) {
    if (!part.schema->get<bool>()) draft.parts.push_back(part);
    return;
  }
  if (!part.schema->is_object()) throw refuse_schema(part, "", "a schema is an object, true or false");
  if (std::find(ancestors.begin(), ancestors.end(), part.schema) != ancestors.end()) {
    throw refuse_schema(part, "", "this schema refers to itself without anything in between",
                        "let the reference stand inside of properties or items");
  }
  if (std::find(draft.seen.begin(), draft.seen.end(), part.schema) != draft.seen.end()) return;
  if (ancestors.size() >= kMostDepth || draft.seen.size() >= kMostParts) {
    throw refuse_schema(part, "", "too many schemas apply to one value", "make the schema simpler");
  }
  check(part);
  draft.seen.push_back(part.schema);
  draft.parts.push_back(part);
  ancestors.push_back(part.schema);
  if (part.schema->contains("$ref")) flatten(resolve(part), ancestors, draft);
  for (const char* keyword : {"allOf", "anyOf", "oneOf"}) {
    const Json* list = find_keyword(part, keyword);
    if (list == nullptr) continue;
    if (!list->is_array() || list->empty()) throw refuse_schema(part, keyword, "a list of schemas was expected");
    const std::string pointer = append_pointer(part.pointer, keyword);
    if (std::string_view(keyword) != "allOf") {
      draft.choices.push_back({{list, pointer}, ancestors});
      continue;
    }
    for (std::size_t i = 0; i < list->size(); ++i) {
      flatten({&(*list)[i], append_pointer(pointer, std::to_string(i))}, ancestors, draft);
    }
  }
  ancestors.pop_back();
}

std::vector<Parts> SchemaReader::alternatives(const Parts& parts) const {
  std::vector<Draft> todo(1);
  for (const Part& part : parts) {
    std::vector<const Json*> ancestors;
    flatten(part, ancestors, todo.front());
  }
  std::vector<Parts> out;
  std::size_t drafts = 0;
  while (!todo.empty()) {
    Draft draft = std::move(todo.back());
    todo.pop_back();
    if (draft.choices.empty()) {
      out.push_back(std::move(draft.parts));
      if (out.size() > kMostAlternatives) {
        throw refuse_schema(parts.front(), "", fmt::format("more than {} alternatives", kMostAlternatives),
                            "use fewer, or nest them");
      }
      continue;
    }
    const Choice choice = std::move(draft.choices.back());
    draft.choices.pop_back();
    // The last one first: the stack turns them round again.
    for (std::size_t i = choice.keyword.schema->size(); i-- > 0;) {
      if (++drafts > kMostDrafts)
        throw refuse_schema(choice.keyword, "", "too many combinations of alternatives", "use fewer");
      Draft next = draft;
      std::vector<const Json*> ancestors = choice.ancestors;
      flatten({&(*choice.keyword.schema)[i], append_pointer(choice.keyword.pointer, std::to_string(i))}, ancestors,
              next);
      todo.push_back(std::move(next));
    }
  }
  return out;
}

}  // namespace spear::constrain
