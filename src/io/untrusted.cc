#include "io/untrusted.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace spear {
namespace {

constexpr const char* kGetAgain = "the file is damaged; get it again";
constexpr int kMaxNesting = 64;

void check_nesting(std::string_view text, const std::string& where) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '\\') {
      ++i;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && (c == '[' || c == '{') && ++depth > kMaxNesting) {
      throw bad_input(fmt::format("the JSON is nested more than {} levels (byte {})", kMaxNesting, i), where,
                      kGetAgain);
    } else if (!quoted && (c == ']' || c == '}')) {
      --depth;
    }
  }
}

}  // namespace

std::int64_t checked_element_count(const Shape& shape, const std::string& where) {
  try {
    return element_count(shape);
  } catch (const Error& error) {
    throw bad_input(error.problem(), where, "the file is damaged");
  }
}

nlohmann::json parse_json(std::string_view text, const std::string& where, bool unique_keys) {
  using nlohmann::json;
  check_nesting(text, where);
  std::vector<std::unordered_set<std::string>> keys;  // of the objects around the value that is being read
  const json::parser_callback_t refuse_twins = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get_ref<const std::string&>()).second) {
      throw bad_input(
          fmt::format("key '{}' appears twice in an object", printable(value.get_ref<const std::string&>())), where,
          kGetAgain);
    }
    return true;
  };
  try {
    return json::parse(text, unique_keys ? refuse_twins : json::parser_callback_t());
  } catch (const json::parse_error& error) {
    throw bad_input(fmt::format("not valid JSON (byte {})", error.byte), where, kGetAgain);
  } catch (const json::exception& error) {
    throw bad_input(fmt::format("not usable JSON: {}", printable(error.what())), where, kGetAgain);
  }
}

nlohmann::json read_json_object(const std::filesystem::path& path, std::size_t max_bytes) {
  auto value = parse_json(read_text_file(path, max_bytes), path.string());
  if (!value.is_object()) throw bad_input("not a JSON object", path.string(), kGetAgain);
  return value;
}

std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 80;
  std::string result(text.substr(0, kLongest));
  for (char& c : result) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text.size() > kLongest ? result + "..." : result;
}

}  // namespace spear
