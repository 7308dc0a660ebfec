#include "server/json_schema.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/api_error.h"
#include "text/utf8.h"

namespace spear {
namespace {

using Json = nlohmann::json;
using Value = nlohmann::ordered_json;

bool is_type(const Value& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  return type == "null" && value.is_null();
}

std::string shown(const std::string& path) { return path.empty() ? "the body" : "'" + path + "'"; }

[[noreturn]] void refuse(const std::string& path, const std::string& message) {
  throw bad_request(shown(path) + " " + message, path);
}

class Validator {
 public:
  explicit Validator(const Json& components) : components_(components) {}

  void check(const Value& value, const Json& schema, const std::string& path) const {
    if (const auto ref = schema.find("$ref"); ref != schema.end()) {
      const auto name = ref->get<std::string>();
      return check(value, components_.at(name.substr(name.rfind('/') + 1)), path);
    }
    if (schema.contains("anyOf")) return any_of(value, schema, path);
    if (schema.contains("type")) type(value, schema.at("type"), path);
    if (schema.contains("enum")) one_of(value, schema.at("enum"), path);
    if (value.is_number()) number(value, schema, path);
    if (value.is_string()) length(count_characters(value.get_ref<const std::string&>()), schema, "Length", "characters", path);
    if (value.is_array()) array(value, schema, path);
    if (value.is_object()) object(value, schema, path);
  }

 private:
  void any_of(const Value& value, const Json& schema, const std::string& path) const {
    const Json& options = schema.at("anyOf");
    // Something or null: what is wrong with the something says more than the list.
    static const Json kNull = {{"type", "null"}};
    if (options.size() == 2 && options[1] == kNull && !value.is_null()) return check(value, options[0], path);
    std::string last;
    for (const auto& option : options) {
      try {
        return check(value, option, path);
      } catch (const ApiError& error) {
        last = error.what();
      }
    }
    throw bad_request(schema.contains("description")
                          ? shown(path) + " must be: " + schema.at("description").get<std::string>()
                          : last,
                      path);
  }

  static void type(const Value& value, const Json& wanted, const std::string& path) {
    const auto fits = [&](const Json& name) { return is_type(value, name.get<std::string>()); };
    const bool ok = wanted.is_array() ? std::any_of(wanted.begin(), wanted.end(), fits) : fits(wanted);
    if (!ok)
      refuse(path, fmt::format("must be of type {}, not {}",
                               wanted.is_array() ? wanted.dump() : wanted.get<std::string>(), value.type_name()));
  }

  static void one_of(const Value& value, const Json& options, const std::string& path) {
    for (const auto& option : options) {
      if (Value(option) == value) return;
    }
    refuse(path, fmt::format("must be one of {}", options.dump()));
  }

  static void number(const Value& value, const Json& schema, const std::string& path) {
    const double x = value.get<double>();  // of an integer beyond 2^53 too: only its range matters here
    if (!(std::abs(x) < 1e300)) refuse(path, "is not finite");
    if (schema.contains("minimum") && x < schema.at("minimum").get<double>())
      refuse(path, fmt::format("must be at least {}", schema.at("minimum").dump()));
    if (schema.contains("maximum") && x > schema.at("maximum").get<double>())
      refuse(path, fmt::format("must be at most {}", schema.at("maximum").dump()));
    if (schema.contains("exclusiveMinimum") && x <= schema.at("exclusiveMinimum").get<double>()) {
      refuse(path, fmt::format("must be above {}", schema.at("exclusiveMinimum").dump()));
    }
  }

  static void length(std::size_t size, const Json& schema, const std::string& suffix, const char* what,
                     const std::string& path) {
    const auto low = schema.find("min" + suffix), high = schema.find("max" + suffix);
    if (low != schema.end() && size < low->get<std::size_t>())
      refuse(path, fmt::format("must have at least {} {}", low->get<std::size_t>(), what));
    if (high != schema.end() && size > high->get<std::size_t>())
      refuse(path, fmt::format("must have at most {} {}", high->get<std::size_t>(), what));
  }

  void array(const Value& value, const Json& schema, const std::string& path) const {
    length(value.size(), schema, "Items", "items", path);
    const auto items = schema.find("items");
    if (items == schema.end()) return;
    for (std::size_t i = 0; i < value.size(); ++i) check(value[i], *items, fmt::format("{}[{}]", path, i));
  }

  void object(const Value& value, const Json& schema, const std::string& path) const {
    length(value.size(), schema, "Properties", "members", path);
    const auto prefix = path.empty() ? std::string() : path + ".";
    const Json empty = Json::object();
    const Json& properties = schema.contains("properties") ? schema.at("properties") : empty;
    for (const auto& required : schema.value("required", Json::array())) {
      if (!value.contains(required.get<std::string>())) refuse(prefix + required.get<std::string>(), "is missing");
    }
    for (const auto& [name, member] : value.items()) {
      const auto known = properties.find(name);
      if (known != properties.end()) {
        if (!member.is_null() || is_required(schema, name)) check(member, *known, prefix + name);
      } else if (const auto others = schema.find("additionalProperties"); others != schema.end()) {
        if (others->is_boolean() && !others->get<bool>())
          refuse(prefix + name, "is unknown, or not supported by this server");
        if (others->is_object()) check(member, *others, prefix + name);
      }
    }
  }

  static bool is_required(const Json& schema, const std::string& name) {
    const Json required = schema.value("required", Json::array());
    return std::find(required.begin(), required.end(), name) != required.end();
  }

  const Json& components_;
};

}  // namespace

Value parse_body(std::string_view body) {
  if (body.empty()) throw bad_request("the body is empty; send a JSON object");
  if (const auto bad = find_invalid_utf8(body); bad != std::string_view::npos) {
    throw bad_request(fmt::format("the body is not UTF-8 (byte {})", bad));
  }
  const auto within = [](int depth, Value::parse_event_t, Value&) {
    if (depth > kMaxBodyDepth) throw bad_request(fmt::format("the body is nested more than {} levels deep", kMaxBodyDepth));
    return true;
  };
  try {
    return Value::parse(body, within);
  } catch (const nlohmann::json::exception& error) {
    const std::string_view text = error.what();
    throw bad_request("the body is not JSON: " + std::string(text.substr(std::min(text.find("] ") + 2, text.size()))));
  }
}

void validate(const Value& value, const Json& schema, const Json& components) {
  Validator(components).check(value, schema, "");
}

}  // namespace spear
