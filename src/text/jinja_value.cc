#include "text/jinja_value.h"

#include <algorithm>

#include "text/utf8.h"

namespace spear::jinja {
namespace {

constexpr int kMaxDepth = 64;

double to_double(const Value& value) {
  if (const auto* real = std::get_if<double>(&value.data)) return *real;
  return static_cast<double>(to_integer(value));
}

std::string json_string(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// Appends to a text that may not outgrow the budget: what a value shares is written every time, and indented.
class JsonWriter {
 public:
  JsonWriter(int indent, const Budget& budget) : indent_(indent), budget_(budget) {}

  std::string take() { return std::move(out_); }

  void write(const Value& value, int margin) {
    if (const std::string* text = value.text()) return append(json_string(*text));
    if (value.is<None>()) return append("null");
    if (const bool* flag = std::get_if<bool>(&value.data)) return append(*flag ? "true" : "false");
    if (value.is_number()) return append(to_text(value));
    if (const List* list = value.list()) {
      return items(*list, "[]", margin, [&](const Value& item, int inner) { write(item, inner); });
    }
    if (const Dict* dict = value.dict()) {
      return items(*dict, "{}", margin, [&](const auto& item, int inner) {
        append(json_string(item.first) + ": ");
        write(item.second, inner);
      });
    }
    throw Problem{type_name(value) + " can't be written as JSON"};
  }

 private:
  void append(std::string_view text) {
    budget_.check_output(out_.size() + text.size());
    out_ += text;
  }

  void new_line(int margin) {
    if (indent_ >= 0) append("\n" + std::string(static_cast<std::size_t>(margin), ' '));
  }

  template <class Items, class WriteItem>
  void items(const Items& items, std::string_view brackets, int margin, const WriteItem& write_item) {
    if (items.empty()) return append(brackets);
    append(brackets.substr(0, 1));
    const int inner = margin + std::max(indent_, 0);
    bool first = true;
    for (const auto& item : items) {
      if (!std::exchange(first, false)) append(indent_ < 0 ? ", " : ",");
      new_line(inner);
      write_item(item, inner);
    }
    new_line(margin);
    append(brackets.substr(1));
  }

  int indent_;  // < 0: on one line
  const Budget& budget_;
  std::string out_;
};

}  // namespace

const Value* Value::find(std::string_view key) const {
  const Dict* items = dict();
  if (items == nullptr) return nullptr;
  const auto found = std::find_if(items->begin(), items->end(), [&](const auto& item) { return item.first == key; });
  return found == items->end() ? nullptr : &found->second;
}

void Budget::step(std::size_t count) {
  steps_ += count;
  if (steps_ > limits_.steps) throw Problem{"the template takes more than " + std::to_string(limits_.steps) + " steps"};
}

void Budget::check_output(std::size_t bytes) const {
  if (bytes > limits_.output_bytes) {
    throw Problem{"the text grows beyond " + std::to_string(limits_.output_bytes) + " bytes"};
  }
}

void Budget::include(Extent& extent, const Value& item) const {
  if (item.is<std::shared_ptr<Namespace>>()) throw Problem{"lists and dicts can't hold a namespace"};
  extent.depth = std::max(extent.depth, item.depth + 1);
  extent.weight += item.weight;
  if (extent.depth > kMaxDepth) throw Problem{"values are nested more than " + std::to_string(kMaxDepth) + " levels"};
  if (extent.weight > limits_.steps) throw Problem{"a value grows beyond " + std::to_string(limits_.steps) + " parts"};
}

Value Budget::text(std::string text) {
  check_output(text.size());
  const std::size_t weight = 1 + text.size() / 64;
  step(weight);
  return {std::make_shared<const std::string>(std::move(text)), 0, weight};
}

Value Budget::list(List items) {
  Extent extent;
  for (const Value& item : items) include(extent, item);
  step(1 + items.size());
  return {std::make_shared<const List>(std::move(items)), extent.depth, extent.weight};
}

Value Budget::dict(Dict items) {
  Extent extent;
  for (const auto& [key, item] : items) include(extent, item);
  step(1 + items.size());
  return {std::make_shared<const Dict>(std::move(items)), extent.depth, extent.weight};
}

Value Budget::from_json(const nlohmann::ordered_json& json, int depth) {
  if (depth > kMaxDepth) throw Problem{"values are nested more than " + std::to_string(kMaxDepth) + " levels"};
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::null:
      return {None{}};
    case nlohmann::ordered_json::value_t::boolean:
      return {json.get<bool>()};
    case nlohmann::ordered_json::value_t::number_integer:
      return {json.get<std::int64_t>()};
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > INT64_MAX) throw Problem{"a number is too large: " + json.dump()};
      return {json.get<std::int64_t>()};
    case nlohmann::ordered_json::value_t::number_float:
      return {json.get<double>()};
    case nlohmann::ordered_json::value_t::string: {
      const auto& text_value = json.get_ref<const std::string&>();
      if (find_invalid_utf8(text_value) != std::string::npos) throw Problem{"a text is not valid UTF-8"};
      return text(text_value);
    }
    case nlohmann::ordered_json::value_t::array: {
      List items;
      for (const auto& item : json) items.push_back(from_json(item, depth + 1));
      return list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict items;
      for (const auto& [key, item] : json.items()) items.emplace_back(key, from_json(item, depth + 1));
      return dict(std::move(items));
    }
    default:
      throw Problem{"binary data can't be used"};
  }
}

bool truth(const Value& value) {
  if (value.is_undefined() || value.is<None>()) return false;
  if (const bool* flag = std::get_if<bool>(&value.data)) return *flag;
  if (value.is_number()) return to_double(value) != 0;
  if (const std::string* text = value.text()) return !text->empty();
  if (const List* list = value.list()) return !list->empty();
  if (const Dict* dict = value.dict()) return !dict->empty();
  return true;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  if (a.is_number() && b.is_number()) {
    if (a.is<double>() || b.is<double>()) return to_double(a) == to_double(b);
    return to_integer(a) == to_integer(b);
  }
  if (a.data.index() != b.data.index()) return false;
  if (const std::string* text = a.text()) {
    budget.step(std::min(a.weight, b.weight));
    return *text == *b.text();
  }
  if (const List* list = a.list()) {
    budget.step();
    const auto same = [&](const Value& x, const Value& y) { return equal(x, y, budget); };
    return std::equal(list->begin(), list->end(), b.list()->begin(), b.list()->end(), same);
  }
  if (const Dict* dict = a.dict()) {
    budget.step(1 + dict->size() + dict->size() * b.dict()->size() / 16);  // members are sought one after another
    return dict->size() == b.dict()->size() && std::all_of(dict->begin(), dict->end(), [&](const auto& item) {
             const Value* other = b.find(item.first);
             return other != nullptr && equal(item.second, *other, budget);
           });
  }
  return a.is<None>() || a.is_undefined();
}

bool less(const Value& a, const Value& b, Budget& budget) {
  if (a.is_number() && b.is_number()) {
    if (a.is<double>() || b.is<double>()) return to_double(a) < to_double(b);
    return to_integer(a) < to_integer(b);
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.step(std::min(a.weight, b.weight));
    return *a.text() < *b.text();
  }
  throw Problem{type_name(a) + " and " + type_name(b) + " have no order"};
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  budget.step();
  if (const std::string* text = container.text()) {
    if (item.text() == nullptr) throw Problem{"only a text can be in a text, not " + type_name(item)};
    budget.step(search_steps(container, *item.text()));
    return text->find(*item.text()) != std::string::npos;
  }
  if (const List* list = container.list()) {
    return std::any_of(list->begin(), list->end(), [&](const Value& element) { return equal(element, item, budget); });
  }
  if (const Dict* dict = container.dict()) budget.step(dict->size() / 16);
  if (container.dict() != nullptr) return item.text() != nullptr && container.find(*item.text()) != nullptr;
  if (container.is_undefined()) return false;
  throw Problem{type_name(container) + " holds nothing"};
}

std::string to_text(const Value& value) {
  if (value.is_undefined()) return {};
  if (const std::string* text = value.text()) return *text;
  if (value.is<None>()) return "None";
  if (const bool* flag = std::get_if<bool>(&value.data)) return *flag ? "True" : "False";
  if (value.is<std::int64_t>()) return std::to_string(to_integer(value));
  if (value.is<double>()) return nlohmann::json(to_double(value)).dump();  // shortest form, as in Python
  throw Problem{"printing " + type_name(value) + " is not supported (use tojson)"};
}

std::string to_json(const Value& value, int indent, Budget& budget) {
  budget.step(value.weight);
  JsonWriter writer(indent, budget);
  writer.write(value, 0);
  return writer.take();
}

std::string type_name(const Value& value) {
  static const char* const names[] = {"undefined", "none",   "a boolean", "an integer",  "a float",
                                      "a text",    "a list", "a dict",    "a namespace", "a function"};
  if (const auto* undefined = std::get_if<Undefined>(&value.data))
    return "'" + undefined->name + "', which is undefined,";
  return names[value.data.index()];
}

List elements(const Value& value, Budget& budget) {
  if (const List* list = value.list()) {
    budget.step(list->size());
    return *list;
  }
  List result;
  if (const Dict* dict = value.dict()) {
    for (const auto& [key, item] : *dict) result.push_back(budget.text(key));
  } else if (const std::string* text = value.text()) {
    for (std::size_t i = 0; i < text->size();) {
      const std::size_t length = read_utf8(std::string_view(*text).substr(i)).length;
      result.push_back(budget.text(text->substr(i, length)));
      i += length;
    }
  } else if (!value.is_undefined()) {
    throw Problem{type_name(value) + " can't be iterated"};
  }
  return result;
}

std::int64_t to_integer(const Value& value) {
  if (const bool* flag = std::get_if<bool>(&value.data)) return *flag ? 1 : 0;
  if (const auto* integer = std::get_if<std::int64_t>(&value.data)) return *integer;
  throw Problem{"an integer was expected, not " + type_name(value)};
}

}  // namespace spear::jinja
