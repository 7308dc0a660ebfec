// Checked access to members of JSON that comes with a model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"

namespace spear {

/// The member, or null when it is absent. Throws Error(bad_input) when `object` is no object.
inline const nlohmann::json& json_member(const nlohmann::json& object, const char* name, const std::string& where) {
  static const nlohmann::json null;
  if (!object.is_object()) throw bad_input(std::string("an object with \"") + name + "\" was expected", where);
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

inline Error json_type_error(const char* name, const char* type, const std::string& where) {
  return bad_input(std::string("\"") + name + "\" must be " + type, where,
                   "fetch the model again; its tokenizer is damaged");
}

inline std::string json_text(const nlohmann::json& object, const char* name, const std::string& where) {
  const nlohmann::json& value = json_member(object, name, where);
  if (!value.is_string()) throw json_type_error(name, "a string", where);
  return value.get<std::string>();
}

inline const nlohmann::json& json_array(const nlohmann::json& object, const char* name, const std::string& where) {
  const nlohmann::json& value = json_member(object, name, where);
  if (!value.is_array()) throw json_type_error(name, "an array", where);
  return value;
}

inline const nlohmann::json& json_object(const nlohmann::json& object, const char* name, const std::string& where) {
  const nlohmann::json& value = json_member(object, name, where);
  if (!value.is_object()) throw json_type_error(name, "an object", where);
  return value;
}

/// Absent and null mean `fallback`.
inline bool json_flag(const nlohmann::json& object, const char* name, bool fallback, const std::string& where) {
  const nlohmann::json& value = json_member(object, name, where);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) throw json_type_error(name, "true or false", where);
  return value.get<bool>();
}

}  // namespace spear
