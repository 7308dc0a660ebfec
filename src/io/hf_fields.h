// Fields of config.json, taken with their type or refused by name.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "io/untrusted.h"

namespace spear::hf {

using nlohmann::json;

inline Error unsupported(const std::string& option, const json& value, const std::string& where) {
  return bad_input(fmt::format("option {} = {} is not supported", option, printable(value.dump(-1, ' ', true))), where,
                   "use a model without it: ignoring the option would change the results");
}

/// Absent and null are the same to Hugging Face.
inline const json* find(const json& config, const char* key) {
  const auto found = config.find(key);
  return found == config.end() || found->is_null() ? nullptr : &*found;
}

inline std::int64_t integer(const json& value, const char* key, const std::string& where) {
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX)) {
    throw bad_input(fmt::format("{} = {} is not an integer", key, printable(value.dump(-1, ' ', true))), where);
  }
  return value.get<std::int64_t>();
}

inline std::int64_t integer_or(const json& config, const char* key, std::optional<std::int64_t> fallback,
                        const std::string& where) {
  if (const json* value = find(config, key)) return integer(*value, key, where);
  if (!fallback) throw bad_input(fmt::format("{} is missing", key), where, "use the config.json of the original model");
  return *fallback;
}

inline double real_or(const json& config, const char* key, double fallback, const std::string& where) {
  const json* value = find(config, key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) throw bad_input(fmt::format("{} is not a number", key), where);
  return value->get<double>();
}

inline bool boolean_or(const json& config, const char* key, bool fallback, const std::string& where) {
  const json* value = find(config, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) throw bad_input(fmt::format("{} is not true or false", key), where);
  return value->get<bool>();
}

}  // namespace spear::hf
