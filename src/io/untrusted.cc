#include "io/untrusted.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace spear {

std::int64_t checked_element_count(const Shape& shape, const std::string& where) {
  try {
    return element_count(shape);
  } catch (const Error& error) {
    throw bad_input(error.problem(), where, "the file is damaged");
  }
}

nlohmann::json read_json_object(const std::filesystem::path& path, std::size_t max_bytes) {
  try {
    auto value = nlohmann::json::parse(read_text_file(path, max_bytes));
    if (!value.is_object()) throw bad_input("not a JSON object", path.string(), "get the file again");
    return value;
  } catch (const nlohmann::json::parse_error& error) {
    throw bad_input(fmt::format("not valid JSON (byte {})", error.byte), path.string(), "get the file again");
  }
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
