#include "text/jinja_builtins.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <map>

#include "text/jinja_text.h"
#include "text/utf8.h"

namespace spear::jinja {
namespace {

using FilterFunction = Value (*)(const Value&, const Arguments&, Budget&);
using TestFunction = bool (*)(const Value&, const Arguments&, Budget&);

// ---- lists and dicts

Value dict_items(const Value& input, Budget& budget) {
  if (input.dict() == nullptr) throw Problem{"a dict was expected, not " + type_name(input)};
  List pairs;
  for (const auto& [key, value] : *input.dict()) pairs.push_back(budget.list({budget.text(key), value}));
  return budget.list(std::move(pairs));
}

Value first_or_last(const Value& input, bool first, Budget& budget) {
  const List items = elements(input, budget);
  if (items.empty()) return {Undefined{first ? "first element" : "last element"}};
  return first ? items.front() : items.back();
}

/// select, reject, selectattr, rejectattr.
Value choose(const Value& input, Arguments arguments, bool by_attribute, bool keep, Budget& budget) {
  Value attribute;
  if (by_attribute) {
    attribute = required(arguments, 0, "attribute");
    if (text_of(attribute).find('.') != std::string::npos) throw Problem{"dotted attributes are not supported"};
    arguments.positional.erase(arguments.positional.begin());
  }
  std::string test;
  if (!arguments.positional.empty()) {
    test = text_of(arguments.positional[0]);
    if (!is_test(test)) throw Problem{"the test '" + test + "' is not supported"};
    arguments.positional.erase(arguments.positional.begin());
  }
  List kept;
  for (const Value& item : elements(input, budget)) {
    const Value subject = by_attribute ? subscript(item, attribute, budget) : item;
    if ((test.empty() ? truth(subject) : apply_test(test, subject, arguments, budget)) == keep) kept.push_back(item);
  }
  return budget.list(std::move(kept));
}

Value map_attribute(const Value& input, const Arguments& arguments, Budget& budget) {
  arguments.check(0, {"attribute"});
  const Value& attribute = required(arguments, 0, "attribute");
  if (text_of(attribute).find('.') != std::string::npos) throw Problem{"dotted attributes are not supported"};
  List result;
  for (const Value& item : elements(input, budget)) result.push_back(subscript(item, attribute, budget));
  return budget.list(std::move(result));
}

Value length(const Value& input, Budget& budget) {
  if (const std::string* text = input.text()) {
    budget.step(input.weight);
    return {static_cast<std::int64_t>(count_characters(*text))};
  }
  return {static_cast<std::int64_t>(input.list() != nullptr ? input.list()->size() : elements(input, budget).size())};
}

Value to_json_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  arguments.check(1, {"indent", "ensure_ascii"});
  const Value* indent = arguments.find(0, "indent");
  if (const Value* ascii = arguments.find(1, "ensure_ascii"); ascii != nullptr && truth(*ascii)) {
    throw Problem{"tojson with ensure_ascii is not supported"};
  }
  const bool one_line = indent == nullptr || indent->is<None>();
  return budget.text(
      to_json(input, one_line ? -1 : static_cast<int>(std::clamp<std::int64_t>(to_integer(*indent), 0, 16)), budget));
}

Value default_filter(const Value& input, const Arguments& arguments, Budget& budget) {
  arguments.check(2, {"default_value", "boolean"});
  const Value* boolean = arguments.find(1, "boolean");
  const bool missing = input.is_undefined() || (boolean != nullptr && truth(*boolean) && !truth(input));
  if (!missing) return input;
  const Value* fallback = arguments.find(0, "default_value");
  return fallback != nullptr ? *fallback : budget.text("");
}

Value to_int_filter(const Value& input, const Arguments& arguments, Budget&) {
  arguments.check(1, {"default"});
  if (const std::string* text = input.text()) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (error == std::errc() && end == text->data() + text->size()) return {value};
  } else if (input.is<bool>() || input.is<std::int64_t>()) {
    return {to_integer(input)};
  }
  const Value* fallback = arguments.find(0, "default");
  return fallback != nullptr ? *fallback : Value{std::int64_t{0}};
}

/// Filters take anything that prints, methods are those of texts.
enum class Call { filter, method };
Value subject(Call call, const Value& value, Budget& budget) {
  return call == Call::method || value.text() != nullptr ? value : budget.text(to_text(value));
}
template <Call kCall, int kSide>
Value strip_call(const Value& v, const Arguments& a, Budget& b) {
  a.check(1);
  return strip(subject(kCall, v, b), a.find(0, "chars"), kSide, b);
}
template <Call kCall, bool kUpper>
Value case_call(const Value& v, const Arguments& a, Budget& b) {
  a.check(0);
  return change_case(subject(kCall, v, b), kUpper, b);
}
template <Call kCall>
Value replace_call(const Value& v, const Arguments& a, Budget& b) {
  return replace(subject(kCall, v, b), a, b);
}
template <bool kByAttribute, bool kKeep>
Value choose_filter(const Value& v, const Arguments& a, Budget& b) {
  return choose(v, a, kByAttribute, kKeep, b);
}

const std::map<std::string, FilterFunction, std::less<>>& filter_table() {
  static const std::map<std::string, FilterFunction, std::less<>> table = {
      {"trim", strip_call<Call::filter, 0>},
      {"tojson", to_json_filter},
      {"default", default_filter},
      {"d", default_filter},
      {"length", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), length(v, b); }},
      {"count", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), length(v, b); }},
      {"upper", case_call<Call::filter, true>},
      {"lower", case_call<Call::filter, false>},
      {"replace", replace_call<Call::filter>},
      {"join",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.check(1, {"d"});
         const Value* separator = a.find(0, "d");
         return join(v, separator == nullptr ? std::string() : to_text(*separator), b);
       }},
      {"first", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), first_or_last(v, true, b); }},
      {"last", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), first_or_last(v, false, b); }},
      {"list", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), b.list(elements(v, b)); }},
      {"items", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), dict_items(v, b); }},
      {"string", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), b.text(to_text(v)); }},
      {"safe", [](const Value& v, const Arguments& a, Budget&) { return a.check(0), v; }},
      {"int", to_int_filter},
      {"select", choose_filter<false, true>},
      {"reject", choose_filter<false, false>},
      {"selectattr", choose_filter<true, true>},
      {"rejectattr", choose_filter<true, false>},
      {"map", map_attribute},
  };
  return table;
}

const std::map<std::string, TestFunction, std::less<>>& test_table() {
  static const auto equals = [](const Value& v, const Arguments& a, Budget& b) {
    return equal(v, required(a, 0, "other"), b);
  };
  static const auto integer = [](const Value& v, const Arguments&, Budget&) { return v.is<std::int64_t>(); };
  static const auto iterable = [](const Value& v, const Arguments&, Budget&) {
    return v.list() != nullptr || v.dict() != nullptr || v.text() != nullptr || v.is_undefined();
  };
  static const std::map<std::string, TestFunction, std::less<>> table = {
      {"defined", [](const Value& v, const Arguments&, Budget&) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v, const Arguments&, Budget&) { return v.is_undefined(); }},
      {"none", [](const Value& v, const Arguments&, Budget&) { return v.is<None>(); }},
      {"string", [](const Value& v, const Arguments&, Budget&) { return v.text() != nullptr; }},
      {"mapping", [](const Value& v, const Arguments&, Budget&) { return v.dict() != nullptr; }},
      {"sequence", iterable},
      {"iterable", iterable},
      {"number", [](const Value& v, const Arguments&, Budget&) { return v.is_number(); }},
      {"integer", integer},
      {"float", [](const Value& v, const Arguments&, Budget&) { return v.is<double>(); }},
      {"boolean", [](const Value& v, const Arguments&, Budget&) { return v.is<bool>(); }},
      {"true", [](const Value& v, const Arguments&, Budget&) { return v.is<bool>() && truth(v); }},
      {"false", [](const Value& v, const Arguments&, Budget&) { return v.is<bool>() && !truth(v); }},
      {"odd", [](const Value& v, const Arguments&, Budget&) { return to_integer(v) % 2 != 0; }},
      {"even", [](const Value& v, const Arguments&, Budget&) { return to_integer(v) % 2 == 0; }},
      {"eq", equals},
      {"equalto", equals},
      {"==", equals},
      {"ne", [](const Value& v, const Arguments& a, Budget& b) { return !equal(v, required(a, 0, "other"), b); }},
      {"in", [](const Value& v, const Arguments& a, Budget& b) { return contains(required(a, 0, "seq"), v, b); }},
  };
  return table;
}

const std::map<std::string, FilterFunction, std::less<>>& method_table() {
  static const auto on_dict = [](const Value& v) -> const Dict& {
    if (v.dict() == nullptr) throw Problem{type_name(v) + " has no such method"};
    return *v.dict();
  };
  static const std::map<std::string, FilterFunction, std::less<>> table = {
      {"strip", strip_call<Call::method, 0>},
      {"lstrip", strip_call<Call::method, -1>},
      {"rstrip", strip_call<Call::method, 1>},
      {"split", split},
      {"replace", replace_call<Call::method>},
      {"upper", case_call<Call::method, true>},
      {"lower", case_call<Call::method, false>},
      {"startswith", [](const Value& v, const Arguments& a, Budget&) { return Value{starts_or_ends(v, a, true)}; }},
      {"endswith", [](const Value& v, const Arguments& a, Budget&) { return Value{starts_or_ends(v, a, false)}; }},
      {"join",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.check(1);
         return join(required(a, 0, "iterable"), text_of(v), b);
       }},
      {"items", [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), dict_items(v, b); }},
      {"keys",
       [](const Value& v, const Arguments& a, Budget& b) { return a.check(0), on_dict(v), b.list(elements(v, b)); }},
      {"values",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.check(0);
         List values;
         for (const auto& [key, value] : on_dict(v)) values.push_back(value);
         return b.list(std::move(values));
       }},
      {"get",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.check(2);
         b.step(on_dict(v).size() / 16);
         const Value* found = v.find(text_of(required(a, 0, "key")));
         const Value* fallback = a.find(1, "default");
         return found != nullptr ? *found : fallback != nullptr ? *fallback : Value{None{}};
       }},
  };
  return table;
}

Value range(const Arguments& arguments, Budget& budget) {
  arguments.check(3);
  const List& given = arguments.positional;
  if (given.empty()) throw Problem{"range needs an argument"};
  std::int64_t at = given.size() == 1 ? 0 : to_integer(given[0]);
  const std::int64_t stop = to_integer(given.size() == 1 ? given[0] : given[1]);
  const std::int64_t step = given.size() == 3 ? to_integer(given[2]) : 1;
  if (step == 0) throw Problem{"range's step is zero"};
  List items;
  while (step > 0 ? at < stop : at > stop) {
    budget.step();
    items.emplace_back().data = at;
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return budget.list(std::move(items));
}

/// Python hands the format to the C library; what that does with unusual conversions is not the template's to choose.
Value strftime_now(const Arguments& arguments, const std::tm& date, Budget& budget) {
  constexpr std::string_view kConversions = "aAbBdeFHIjmMpSTuUwWyY%", kWithoutZeros = "dmHIMSj";
  constexpr std::size_t kLongest = 200;
  arguments.check(1);
  const std::string& format = text_of(required(arguments, 0, "format"));
  if (format.size() > kLongest || format.find('\0') != std::string::npos)
    throw Problem{"the format of a date is too long or has a zero byte"};
  for (std::size_t i = format.find('%'); i != std::string::npos; i = format.find('%', i + 1)) {
    const bool dash = format.compare(i + 1, 1, "-") == 0;
    i += dash ? 2 : 1;
    if (i >= format.size() || (dash ? kWithoutZeros : kConversions).find(format[i]) == std::string_view::npos)
      throw Problem{"a conversion that is not supported in the format of a date"};
  }
  std::array<char, kLongest * 8> text{};
  return budget.text(std::string(text.data(), std::strftime(text.data(), text.size(), format.c_str(), &date)));
}

}  // namespace

const Value* Arguments::find(std::size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  const auto found =
      std::find_if(keywords.begin(), keywords.end(), [&](const auto& item) { return item.first == name; });
  return found == keywords.end() ? nullptr : &found->second;
}

void Arguments::check(std::size_t most, std::initializer_list<std::string_view> names) const {
  if (positional.size() > most) throw Problem{"too many arguments"};
  for (const auto& [name, value] : keywords) {
    if (std::find(names.begin(), names.end(), name) == names.end())
      throw Problem{"the argument '" + name + "' is not supported"};
  }
}

const std::string& text_of(const Value& value) {
  if (value.text() == nullptr) throw Problem{"a text was expected, not " + type_name(value)};
  return *value.text();
}

const Value& required(const Arguments& arguments, std::size_t index, std::string_view name) {
  const Value* value = arguments.find(index, name);
  if (value == nullptr) throw Problem{"an argument is missing: " + std::string(name)};
  return *value;
}

bool is_filter(std::string_view name) { return filter_table().contains(name); }
bool is_test(std::string_view name) { return test_table().contains(name); }
bool is_method(std::string_view name) { return method_table().contains(name); }
bool is_function(std::string_view name) {
  return name == "range" || name == "namespace" || name == "raise_exception" || name == "strftime_now";
}

Value apply_filter(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget) {
  return filter_table().at(name)(input, arguments, budget);
}

bool apply_test(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget) {
  return test_table().at(name)(input, arguments, budget);
}

Value call_method(const std::string& name, const Value& object, const Arguments& arguments, Budget& budget) {
  return method_table().at(name)(object, arguments, budget);
}

Value call_function(const std::string& name, const Arguments& arguments, const std::tm& date, Budget& budget) {
  if (name == "strftime_now") return strftime_now(arguments, date, budget);
  if (name == "range") return range(arguments, budget);
  if (name == "raise_exception") {
    arguments.check(1);
    throw Problem{text_of(required(arguments, 0, "message"))};
  }
  if (!arguments.positional.empty()) throw Problem{"namespace takes named arguments only"};
  auto space = std::make_shared<Namespace>();
  for (const auto& [key, value] : arguments.keywords) {
    if (value.is<std::shared_ptr<Namespace>>()) throw Problem{"a namespace can't hold a namespace"};
    (*space)[key] = value;
  }
  return {std::move(space)};
}

}  // namespace spear::jinja
