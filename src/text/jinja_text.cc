#include "text/jinja_text.h"

#include <unicode/locid.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "text/utf8.h"

namespace spear::jinja {
namespace {

/// What Python's str.strip() removes.
bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

}  // namespace

Value strip(const Value& input, const Value* characters, int side, Budget& budget) {
  std::string_view text = text_of(input);
  budget.step(input.weight);
  std::u32string set;
  const bool spaces = characters == nullptr || characters->is<None>();
  if (!spaces) {
    for (const Value& c : elements(*characters, budget)) set += read_utf8(text_of(c)).code;
    std::sort(set.begin(), set.end());
  }
  const auto strips = [&](std::string_view c) {
    const char32_t code = read_utf8(c).code;
    return spaces ? is_python_space(code) : std::binary_search(set.begin(), set.end(), code);
  };
  while (side <= 0 && !text.empty() && strips(text)) text.remove_prefix(read_utf8(text).length);
  while (side >= 0 && !text.empty()) {
    std::size_t last = text.size() - 1;
    while (last > 0 && (text[last] & 0xC0) == 0x80) --last;
    if (!strips(text.substr(last))) break;
    text.remove_suffix(text.size() - last);
  }
  return budget.text(std::string(text));
}

Value change_case(const Value& input, bool upper, Budget& budget) {
  icu::UnicodeString text = icu::UnicodeString::fromUTF8(text_of(input));
  upper ? text.toUpper(icu::Locale::getRoot()) : text.toLower(icu::Locale::getRoot());
  std::string out;
  return budget.text(text.toUTF8String(out));
}

Value replace(const Value& input, const Arguments& arguments, Budget& budget) {
  arguments.check(3);
  const std::string& text = text_of(input);
  const std::string &from = text_of(required(arguments, 0, "old")), &to = text_of(required(arguments, 1, "new"));
  const Value* limit = arguments.find(2, "count");
  std::int64_t left = limit == nullptr || limit->is<None>() ? -1 : to_integer(*limit);
  if (from.empty()) throw Problem{"replacing an empty text is not supported"};
  budget.step(search_steps(input, from));
  std::string out;
  std::size_t at = 0;
  while (left != 0) {
    const std::size_t found = text.find(from, at);
    if (found == std::string::npos) break;
    out.append(text, at, found - at);
    out += to;
    budget.check_output(out.size());
    at = found + from.size();
    --left;
  }
  return budget.text(out + text.substr(at));
}

Value split(const Value& input, const Arguments& arguments, Budget& budget) {
  arguments.check(2);
  const std::string& text = text_of(input);
  const Value* separator = arguments.find(0, "sep");
  const Value* limit = arguments.find(1, "maxsplit");
  std::int64_t left = limit == nullptr ? -1 : to_integer(*limit);
  List parts;
  if (separator == nullptr || separator->is<None>()) {
    if (limit != nullptr) throw Problem{"split at white space takes no limit here"};
    std::string word;
    for (const Value& character : elements(input, budget)) {
      const bool space = is_python_space(read_utf8(*character.text()).code);
      if (!space) word += *character.text();
      if (space && !word.empty()) parts.push_back(budget.text(std::exchange(word, {})));
    }
    if (!word.empty()) parts.push_back(budget.text(word));
    return budget.list(std::move(parts));
  }
  const std::string& by = text_of(*separator);
  if (by.empty()) throw Problem{"split needs a separator that isn't empty"};
  budget.step(search_steps(input, by));
  std::size_t at = 0;
  for (std::size_t found; left != 0 && (found = text.find(by, at)) != std::string::npos; --left) {
    parts.push_back(budget.text(text.substr(at, found - at)));
    at = found + by.size();
  }
  parts.push_back(budget.text(text.substr(at)));
  return budget.list(std::move(parts));
}

Value join(const Value& items, const std::string& separator, Budget& budget) {
  std::string out;
  bool first = true;
  for (const Value& item : elements(items, budget)) {
    if (!std::exchange(first, false)) out += separator;
    out += to_text(item);
    budget.check_output(out.size());
  }
  return budget.text(std::move(out));
}

bool starts_or_ends(const Value& input, const Arguments& arguments, bool starts) {
  arguments.check(1);
  const std::string& part = text_of(required(arguments, 0, "prefix"));
  return starts ? text_of(input).starts_with(part) : text_of(input).ends_with(part);
}

}  // namespace spear::jinja
