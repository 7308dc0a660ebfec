// Read access to the manifest: what is missing or null is absent, what has the wrong type is an error that names it.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace spear {

class ManifestField {
 public:
  explicit ManifestField(const nlohmann::json& value, std::string path = {}) : value_(&value), path_(std::move(path)) {}

  explicit operator bool() const { return value_ != nullptr && !value_->is_null(); }
  bool is_number() const { return *this && value_->is_number(); }
  bool is_object() const { return *this && value_->is_object(); }
  const std::string& path() const { return path_; }

  /// Member of an object; absent if this is.
  ManifestField operator[](const char* name) const;
  /// Elements of an array, none if absent.
  std::vector<ManifestField> items() const;
  /// Members of an object in order, none if absent.
  std::vector<std::pair<std::string, ManifestField>> members() const;

  std::optional<double> number() const;  ///< nothing if absent or not finite
  std::optional<bool> boolean() const;
  std::string text() const;         ///< empty if absent
  std::string scalar_text() const;  ///< text, number, truth value, or a list of these, as text

  [[noreturn]] void fail(const std::string& expected) const;

 private:
  ManifestField(const nlohmann::json* value, std::string path) : value_(value), path_(std::move(path)) {}
  const nlohmann::json* require(bool (nlohmann::json::*is)() const noexcept, const char* expected) const;

  const nlohmann::json* value_;
  std::string path_;
};

/// {"value", "low", "high"} or a bare number.
struct MeasuredValue {
  double value = 0;
  std::optional<double> low, high;

  bool excludes_zero() const { return low && high && (*low > 0 || *high < 0); }
};
std::optional<MeasuredValue> measured(const ManifestField& field);

/// One value per linear module, [layers * 7]; nothing if absent.
std::vector<std::optional<double>> per_module(const ManifestField& field);

}  // namespace spear
