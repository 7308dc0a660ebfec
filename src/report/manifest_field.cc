#include "report/manifest_field.h"

#include "base/error.h"
#include "model/config.h"

namespace spear {
namespace {

/// U+FFFD in place of bytes that are no UTF-8.
std::string valid_utf8(const std::string& text) {
  return nlohmann::json::parse(nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

const nlohmann::json* ManifestField::require(bool (nlohmann::json::*is)() const noexcept, const char* expected) const {
  if (!*this) return nullptr;
  if (!(value_->*is)()) fail(expected);
  return value_;
}

void ManifestField::fail(const std::string& expected) const {
  throw bad_input("expected " + expected, "spear.json: " + path_,
                  "the manifest was changed by hand or written by another version; write it again");
}

ManifestField ManifestField::operator[](const char* name) const {
  const std::string path = path_.empty() ? name : path_ + "." + name;
  const nlohmann::json* object = require(&nlohmann::json::is_object, "an object");
  if (object == nullptr) return {nullptr, path};
  const auto found = object->find(name);
  return {found == object->end() ? nullptr : &*found, path};
}

std::vector<ManifestField> ManifestField::items() const {
  std::vector<ManifestField> result;
  const nlohmann::json* array = require(&nlohmann::json::is_array, "an array");
  for (std::size_t i = 0; array != nullptr && i < array->size(); ++i) {
    result.push_back({&(*array)[i], path_ + "[" + std::to_string(i) + "]"});
  }
  return result;
}

std::vector<std::pair<std::string, ManifestField>> ManifestField::members() const {
  std::vector<std::pair<std::string, ManifestField>> result;
  const nlohmann::json* object = require(&nlohmann::json::is_object, "an object");
  if (object == nullptr) return result;
  for (const auto& [name, value] : object->items()) result.push_back({valid_utf8(name), {&value, path_ + "." + name}});
  return result;
}

std::optional<double> ManifestField::number() const {
  const nlohmann::json* value = require(&nlohmann::json::is_number, "a number");
  if (value == nullptr || !std::isfinite(value->get<double>())) return std::nullopt;
  return value->get<double>();
}

std::optional<bool> ManifestField::boolean() const {
  const nlohmann::json* value = require(&nlohmann::json::is_boolean, "true or false");
  return value == nullptr ? std::nullopt : std::optional(value->get<bool>());
}

std::string ManifestField::text() const {
  const nlohmann::json* value = require(&nlohmann::json::is_string, "a text");
  return value == nullptr ? std::string() : valid_utf8(value->get<std::string>());
}

std::string ManifestField::scalar_text() const {
  if (!*this) return {};
  if (value_->is_string()) return text();
  if (value_->is_primitive()) return value_->dump();
  if (!value_->is_array()) return "{\u2026}";
  std::string list;  // one level only: nothing here recurses into what a hostile file may nest
  for (const nlohmann::json& item : *value_) {
    list += list.empty() ? "" : ", ";
    list += item.is_structured() ? "\u2026" : ManifestField(item, path_).scalar_text();
  }
  return list;
}

std::optional<MeasuredValue> measured(const ManifestField& field) {
  if (!field) return std::nullopt;
  if (field.is_number()) {
    const auto value = field.number();
    return value ? std::optional(MeasuredValue{*value, {}, {}}) : std::nullopt;
  }
  if (!field.is_object()) field.fail("a number or {\"value\", \"low\", \"high\"}");
  const auto value = field["value"].number();
  if (!value) return std::nullopt;
  return MeasuredValue{*value, field["low"].number(), field["high"].number()};
}

std::vector<std::optional<double>> per_module(const ManifestField& field) {
  std::vector<std::optional<double>> values;
  for (const ManifestField& item : field.items()) values.push_back(item.number());
  if (values.size() % kLinearsPerLayer != 0) field.fail("one value per linear module, 7 per layer");
  return values;
}

}  // namespace spear
