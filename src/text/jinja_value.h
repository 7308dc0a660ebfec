// Values of the template language, and the budget that bounds what a template can make of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "text/chat_template.h"

namespace spear::jinja {

/// What went wrong, without the place; the interpreter adds line and column.
struct Problem {
  std::string text;
};

struct Value;
struct Dict;
struct Namespace;
using List = std::vector<Value>;

struct Undefined {
  std::string name;
};
struct None {};
/// A function the language provides, by name.
struct Function {
  std::string name;
};

/// Text, lists and dicts are shared and never change; a namespace does.
struct Value {
  std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, Function>
      data;
  int depth = 0;           ///< levels of lists and dicts inside
  std::size_t weight = 1;  ///< steps that visiting all of it takes; shared parts count every time

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(data);
  }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_number() const { return is<bool>() || is<std::int64_t>() || is<double>(); }
  /// Null if the value is of another type.
  const std::string* text() const { return shared<const std::string>(); }
  const List* list() const { return shared<const List>(); }
  const Dict* dict() const { return shared<const Dict>(); }
  /// The member of a dict, or null.
  const Value* find(std::string_view key) const;

 private:
  template <typename T>
  const T* shared() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&data);
    return pointer == nullptr ? nullptr : pointer->get();
  }
};

struct Dict : std::vector<std::pair<std::string, Value>> {  // insertion order, as in Python
  using vector::vector;
};
struct Namespace : std::map<std::string, Value, std::less<>> {
  using map::map;
};

/// Counts steps and makes values, refusing (Problem) what exceeds the limits.
class Budget {
 public:
  explicit Budget(const TemplateLimits& limits) : limits_(limits) {}

  void step(std::size_t count = 1);
  Value text(std::string text);
  Value list(List items);
  Value dict(Dict items);
  Value from_json(const nlohmann::ordered_json& json, int depth = 0);
  void check_output(std::size_t bytes) const;

 private:
  /// Depth and weight of a container with these items; Problem when either is too large.
  struct Extent {
    int depth = 1;
    std::size_t weight = 1;
  };
  void include(Extent& extent, const Value& item) const;
  const TemplateLimits& limits_;
  std::size_t steps_ = 0;
};

/// Steps that seeking `part` in all of `text` takes at worst: as many comparisons as the product of their lengths.
inline std::size_t search_steps(const Value& text, std::string_view part) {
  return text.weight * (1 + part.size() / 64);
}

bool truth(const Value& value);
/// Python's ==.
bool equal(const Value& a, const Value& b, Budget& budget);
/// Python's <, for numbers and for texts; Problem otherwise.
bool less(const Value& a, const Value& b, Budget& budget);
/// Python's `item in container`.
bool contains(const Value& container, const Value& item, Budget& budget);
/// What `{{ value }}` prints; Problem for lists and dicts.
std::string to_text(const Value& value);
/// Python's json.dumps(ensure_ascii=False); indent < 0: on one line.
std::string to_json(const Value& value, int indent, Budget& budget);
/// "text", "list", ... for messages.
std::string type_name(const Value& value);
/// Elements of a list, keys of a dict, characters of a text; none for undefined. Problem otherwise.
List elements(const Value& value, Budget& budget);
/// The number as an integer (bool counts); Problem otherwise.
std::int64_t to_integer(const Value& value);

}  // namespace spear::jinja
