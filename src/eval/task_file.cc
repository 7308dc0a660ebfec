// Reads task files: every line comes from outside and is checked before use.
#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "eval/tasks.h"

namespace spear {
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{256} << 20;
constexpr std::size_t kMaxOptions = 64;

const char* kFields =
    "a line is one of {\"context\", \"continuation\"}, {\"query\", \"choices\", \"gold\"}, "
    "{\"context_options\", \"continuation\", \"gold\"}";

std::string text_field(const nlohmann::json& line, const char* field, const std::string& where) {
  const auto found = line.find(field);
  if (found == line.end() || !found->is_string() || found->get_ref<const std::string&>().empty()) {
    throw bad_input(fmt::format("\"{}\" must be a text that is not empty", field), where, kFields);
  }
  return found->get<std::string>();
}

std::vector<std::string> list_field(const nlohmann::json& line, const char* field, const std::string& where) {
  const nlohmann::json& list = line.at(field);
  bool usable = list.is_array() && list.size() >= 2 && list.size() <= kMaxOptions;
  for (std::size_t i = 0; usable && i < list.size(); ++i) {
    usable = list[i].is_string() && !list[i].get_ref<const std::string&>().empty();
  }
  if (!usable) {
    throw bad_input(fmt::format("\"{}\" must be a list of 2 to {} texts that are not empty", field, kMaxOptions), where,
                    kFields);
  }
  return list.get<std::vector<std::string>>();
}

std::int64_t gold_field(const nlohmann::json& line, std::size_t options, const std::string& where) {
  const auto found = line.find("gold");
  if (found == line.end() || !found->is_number_integer() || found->get<double>() < 0 ||
      found->get<double>() >= static_cast<double>(options)) {
    throw bad_input(fmt::format("\"gold\" must be a whole number from 0 to {}", options - 1), where, kFields);
  }
  return found->get<std::int64_t>();
}

/// "Question: ...\n" asks for "\nAnswer:", as in lm-eval's prompts for these sets.
std::string prompt_of(std::string query) {
  if (!query.starts_with("Question:")) return query;
  while (!query.empty() && (query.back() == '\n' || query.back() == ' ')) query.pop_back();
  return query + "\nAnswer:";
}

std::pair<TaskKind, TaskItem> parse_line(const std::string& text, const std::string& where) {
  const auto line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) throw bad_input("not a JSON object", where, kFields);
  TaskItem item;
  if (line.contains("choices")) {
    item.contexts = {prompt_of(text_field(line, "query", where))};
    item.continuations = list_field(line, "choices", where);
    item.gold = gold_field(line, item.options(), where);
    return {TaskKind::multiple_choice, std::move(item)};
  }
  item.continuations = {text_field(line, "continuation", where)};
  if (line.contains("context_options")) {
    item.contexts = list_field(line, "context_options", where);
    item.gold = gold_field(line, item.options(), where);
    return {TaskKind::shared_ending, std::move(item)};
  }
  item.contexts = {text_field(line, "context", where)};
  return {TaskKind::last_word, std::move(item)};
}

}  // namespace

Task read_task(const std::filesystem::path& path, std::int64_t limit) {
  if (limit < 0) throw usage_error("the number of items must not be negative", "--limit");
  const std::string content = read_text_file(path, kMaxFileBytes);
  Task task;
  task.name = path.stem().string();
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string text = content.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", path.string(), number);
    auto [kind, item] = parse_line(text, where);
    if (task.items.empty()) task.kind = kind;
    if (kind != task.kind) throw bad_input("the line is of another kind than those before it", where, kFields);
    task.items.push_back(std::move(item));
    if (limit > 0 && static_cast<std::int64_t>(task.items.size()) == limit) break;
  }
  if (task.items.empty()) throw bad_input("the task file has no items", path.string(), kFields);
  return task;
}

}  // namespace spear
