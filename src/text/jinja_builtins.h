// Filters, tests, methods, functions and operators of the template language.
#pragma once

#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace spear::jinja {

/// Arguments of a call, evaluated.
struct Arguments {
  List positional;
  Dict keywords;

  /// The argument at `index` or by `name`, or null.
  const Value* find(std::size_t index, std::string_view name) const;
  /// Problem if there are more than `most` positional ones, or keywords other than `names`.
  void check(std::size_t most, std::initializer_list<std::string_view> names = {}) const;
};

/// The text of a value; Problem if it is none.
const std::string& text_of(const Value& value);
/// The argument at `index` or by `name`; Problem if it is missing.
const Value& required(const Arguments& arguments, std::size_t index, std::string_view name);

bool is_filter(std::string_view name);
bool is_test(std::string_view name);
bool is_method(std::string_view name);
bool is_function(std::string_view name);

// All throw Problem for arguments they can't take.
Value apply_filter(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget);
bool apply_test(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget);
Value call_method(const std::string& name, const Value& object, const Arguments& arguments, Budget& budget);
/// `date`: the present.
Value call_function(const std::string& name, const Arguments& arguments, const std::tm& date, Budget& budget);
/// `operation` is one of + - * / // % ~
Value apply_binary(const std::string& operation, const Value& left, const Value& right, Budget& budget);
/// object[key]; undefined if there is no such member.
Value subscript(const Value& object, const Value& key, Budget& budget);
/// Python's object[start:stop:step]; null bounds are left out.
Value slice(const Value& object, const Value* start, const Value* stop, const Value* step, Budget& budget);

}  // namespace spear::jinja
