#include <algorithm>
#include <cmath>

#include "text/jinja_builtins.h"
#include "text/utf8.h"

namespace spear::jinja {
namespace {

Value integer_arithmetic(const std::string& operation, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  bool overflow = false;
  if (operation == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (operation == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (operation == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else {
    if (b == 0) throw Problem{"a division by zero"};
    if (operation == "/") return {static_cast<double>(a) / static_cast<double>(b)};
    overflow = a == INT64_MIN && b == -1;
    if (!overflow) {
      // Python rounds towards minus infinity.
      const bool adjust = a % b != 0 && ((a < 0) != (b < 0));
      result = operation == "//" ? a / b - (adjust ? 1 : 0) : a % b + (adjust ? b : 0);
    }
  }
  if (overflow) throw Problem{"an integer overflow"};
  return {result};
}

Value real_arithmetic(const std::string& operation, double a, double b) {
  if (operation == "+") return {a + b};
  if (operation == "-") return {a - b};
  if (operation == "*") return {a * b};
  if (b == 0) throw Problem{"a division by zero"};
  if (operation == "/") return {a / b};
  if (operation == "//") return {std::floor(a / b)};
  return {a - b * std::floor(a / b)};
}

double real_of(const Value& value) {
  const auto* real = std::get_if<double>(&value.data);
  return real != nullptr ? *real : static_cast<double>(to_integer(value));
}

}  // namespace

Value apply_binary(const std::string& operation, const Value& left, const Value& right, Budget& budget) {
  if (operation == "~") return budget.text(to_text(left) + to_text(right));
  if (operation == "+" && left.text() != nullptr && right.text() != nullptr)
    return budget.text(*left.text() + *right.text());
  if (operation == "+" && left.list() != nullptr && right.list() != nullptr) {
    budget.step(left.list()->size() + right.list()->size());
    List items = *left.list();
    items.insert(items.end(), right.list()->begin(), right.list()->end());
    return budget.list(std::move(items));
  }
  if (!left.is_number() || !right.is_number()) {
    throw Problem{"'" + operation + "' can't combine " + type_name(left) + " and " + type_name(right)};
  }
  if (left.is<double>() || right.is<double>()) return real_arithmetic(operation, real_of(left), real_of(right));
  return integer_arithmetic(operation, to_integer(left), to_integer(right));
}

Value subscript(const Value& object, const Value& key, Budget& budget) {
  if (object.is_undefined() || object.is<None>()) throw Problem{type_name(object) + " has no members"};
  const std::string missing = key.text() != nullptr ? key.text()->substr(0, 64) : "element";
  if (const Dict* dict = object.dict()) {
    budget.step(1 + dict->size() / 8);
    const Value* found = key.text() != nullptr ? object.find(*key.text()) : nullptr;
    return found != nullptr ? *found : Value{Undefined{missing}};
  }
  if (const auto* space = std::get_if<std::shared_ptr<Namespace>>(&object.data)) {
    const auto found = key.text() != nullptr ? (*space)->find(*key.text()) : (*space)->end();
    return found != (*space)->end() ? found->second : Value{Undefined{missing}};
  }
  if (object.list() == nullptr && object.text() == nullptr) return {Undefined{missing}};
  if (!key.is<std::int64_t>()) return {Undefined{missing}};
  const List characters = object.list() == nullptr ? elements(object, budget) : List();
  const List& items = object.list() == nullptr ? characters : *object.list();
  const auto size = static_cast<std::int64_t>(items.size());
  std::int64_t index = to_integer(key);
  if (index < 0) index += size;
  return index >= 0 && index < size ? items[static_cast<std::size_t>(index)] : Value{Undefined{missing}};
}

Value slice(const Value& object, const Value* start, const Value* stop, const Value* step, Budget& budget) {
  if (object.list() == nullptr && object.text() == nullptr) throw Problem{type_name(object) + " can't be sliced"};
  const List items = elements(object, budget);
  const auto size = static_cast<std::int64_t>(items.size());
  const auto given = [](const Value* bound) { return bound != nullptr && !bound->is<None>(); };
  const std::int64_t stride = given(step) ? to_integer(*step) : 1;
  if (stride == 0) throw Problem{"a slice's step is zero"};
  const std::int64_t low = stride > 0 ? 0 : -1, high = stride > 0 ? size : size - 1;
  const auto bound = [&](const Value* value, std::int64_t fallback) {
    if (!given(value)) return fallback;
    const std::int64_t index = to_integer(*value);
    return std::clamp(index < 0 ? index + size : index, low, high);
  };
  std::int64_t index = bound(start, stride > 0 ? low : high);
  const std::int64_t end = bound(stop, stride > 0 ? high : low);
  List result;
  while (stride > 0 ? index < end : index > end) {
    result.push_back(items[static_cast<std::size_t>(index)]);
    if (__builtin_add_overflow(index, stride, &index)) break;
  }
  if (object.list() != nullptr) return budget.list(std::move(result));
  std::string text;
  for (const Value& character : result) text += *character.text();
  return budget.text(std::move(text));
}

}  // namespace spear::jinja
