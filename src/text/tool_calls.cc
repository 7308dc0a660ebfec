#include "text/tool_calls.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

namespace spear {
namespace {

constexpr std::size_t kLongest = std::size_t{1} << 20;  // bytes that are held back for one call
constexpr int kDeepest = 200;
constexpr std::string_view kSpace = " \t\r\n";
constexpr std::array kNames = {std::pair{ToolFormat::hermes, "hermes"}, std::pair{ToolFormat::smollm, "smollm"},
                               std::pair{ToolFormat::llama3, "llama3_json"}, std::pair{ToolFormat::mistral, "mistral"}};

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// Length of the longest end of the text that begins the tag without being all of it.
std::size_t open_end(std::string_view text, std::string_view tag) {
  std::size_t length = std::min(tag.size() - 1, text.size());
  while (length > 0 && !text.ends_with(tag.substr(0, length))) --length;
  return length;
}

}  // namespace

const char* name(ToolFormat format) {
  for (const auto& [known, text] : kNames) {
    if (known == format) return text;
  }
  return "";
}

std::optional<ToolFormat> tool_format(std::string_view name) {
  for (const auto& [format, text] : kNames) {
    if (name == text) return format;
  }
  return std::nullopt;
}

std::optional<ToolFormat> detect_tool_format(std::string_view chat_template) {
  if (contains(chat_template, "[TOOL_CALLS]")) return ToolFormat::mistral;
  if (contains(chat_template, "<tool_call>[")) return ToolFormat::smollm;
  if (contains(chat_template, "<tool_call>")) return ToolFormat::hermes;
  if (contains(chat_template, "<|python_tag|>") ||
      (contains(chat_template, "ipython") && contains(chat_template, "parameters"))) {
    return ToolFormat::llama3;
  }
  return std::nullopt;
}

ToolTags tool_tags(ToolFormat format) {
  switch (format) {
    case ToolFormat::hermes:
    case ToolFormat::smollm:
      return {"<tool_call>", "</tool_call>"};
    case ToolFormat::mistral:
      return {"[TOOL_CALLS]", ""};
    case ToolFormat::llama3:
      break;
  }
  return {};
}

ToolCallParser::ToolCallParser(ToolFormat format, std::uint64_t seed)
    : format_(format), tags_(tool_tags(format)), random_(seed) {}

ToolCallParser::Output ToolCallParser::push(std::string_view piece) {
  Output out;
  held_ += piece;
  run(false, out);
  return out;
}

ToolCallParser::Output ToolCallParser::finish() {
  Output out;
  run(true, out);
  return out;
}

void ToolCallParser::run(bool last, Output& out) {
  bool more = true;
  while (more) {
    switch (state_) {
      case State::text:
        more = run_text(last, out);
        break;
      case State::json:
        more = run_json(last, out);
        break;
      case State::closing:
        more = run_closing(last, out);
        break;
    }
  }
}

/// Text up to the next opening tag; true when one was found.
bool ToolCallParser::run_text(bool last, Output& out) {
  if (tags_.open.empty()) {
    // The output is a call from its first character on, or no call at all.
    const std::size_t start = held_.find_first_not_of(after_call_ ? " \t\r\n;" : kSpace);
    if (start == std::string::npos) {
      if (!last && !any_text_) return false;
    } else if (held_[start] == '{' && !any_text_) {
      at_ = begin_ = start;
      state_ = State::json;
      return true;
    }
    if (start == std::string::npos && after_call_) {
      held_.clear();
    } else {
      give(held_.size(), out);
    }
    return false;
  }
  const std::size_t found = held_.find(tags_.open);
  if (found != std::string::npos) {
    if (after_call_ && held_.find_first_not_of(kSpace) == found) {
      held_.erase(0, found);
    } else {
      give(found, out);
    }
    at_ = begin_ = tags_.open.size();
    state_ = State::json;
    return true;
  }
  const std::size_t kept = last ? 0 : open_end(held_, tags_.open);
  // White space between two calls, or behind the last one, is no text.
  if (after_call_ && held_.find_first_not_of(kSpace) >= held_.size() - kept) {
    if (last) held_.clear();
    return false;
  }
  give(held_.size() - kept, out);
  return false;
}

/// One JSON value behind the tag; true when its end, or something that cannot be a call, was found.
bool ToolCallParser::run_json(bool last, Output& out) {
  for (; at_ < held_.size(); ++at_) {
    const char c = held_[at_];
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
      }
      continue;
    }
    if (depth_ == 0) {
      if (kSpace.find(c) != std::string_view::npos && at_ == begin_) {
        ++begin_;
        continue;
      }
      if (c != '{' && c != '[') {
        give_up(out);
        return true;
      }
    }
    if (c == '"') in_string_ = true;
    if (c == '{' || c == '[') ++depth_;
    if (c == '}' || c == ']') --depth_;
    if (depth_ > kDeepest) {
      give_up(out);
      return true;
    }
    if (depth_ == 0) {
      ++at_;
      state_ = State::closing;
      return true;
    }
  }
  if (last || held_.size() > kLongest) {
    give_up(out);
    return true;
  }
  return false;
}

/// The closing tag behind the value at [begin_, at_).
bool ToolCallParser::run_closing(bool last, Output& out) {
  std::size_t end = at_;
  if (!tags_.close.empty()) {
    const std::size_t start = held_.find_first_not_of(kSpace, at_);
    const std::string_view rest =
        start == std::string::npos ? std::string_view() : std::string_view(held_).substr(start);
    if (rest.size() < tags_.close.size() && std::string_view(tags_.close).starts_with(rest)) {
      if (!last) {
        if (held_.size() <= kLongest) return false;
        give_up(out);
        return true;
      }
      end = held_.size();
    } else if (rest.starts_with(tags_.close)) {
      end = start + tags_.close.size();
    } else {
      give_up(out);
      return true;
    }
  }
  std::vector<ToolCall> calls;
  if (!read_calls(std::string_view(held_).substr(begin_, at_ - begin_), calls)) {
    give_up(out);
    return true;
  }
  std::move(calls.begin(), calls.end(), std::back_inserter(out.calls));
  held_.erase(0, end);
  restart();
  after_call_ = true;
  return true;
}

/// No call after all: the opening tag is text, behind it everything is looked at anew.
void ToolCallParser::give_up(Output& out) {
  const std::size_t tag = tags_.open.empty() ? held_.size() : tags_.open.size();
  restart();
  give(tag, out);
}

void ToolCallParser::give(std::size_t count, Output& out) {
  if (count == 0) return;
  out.text.append(held_, 0, count);
  held_.erase(0, count);
  any_text_ = true;
  after_call_ = false;
}

void ToolCallParser::restart() {
  state_ = State::text;
  at_ = begin_ = 0;
  depth_ = 0;
  in_string_ = escaped_ = false;
}

bool ToolCallParser::read_calls(std::string_view json, std::vector<ToolCall>& calls) {
  using Json = nlohmann::ordered_json;
  const Json value = Json::parse(json, nullptr, false);
  const auto read = [&](const Json& call) {
    if (!call.is_object()) return false;
    const auto named = call.find("name");
    if (named == call.end() || !named->is_string() || named->get_ref<const std::string&>().empty()) return false;
    auto arguments = call.find("arguments");
    if (arguments == call.end()) arguments = call.find("parameters");
    std::string text = "{}";
    if (arguments != call.end() && !arguments->is_null()) {
      if (arguments->is_object()) {
        text = arguments->dump();
      } else if (arguments->is_string() &&
                 Json::parse(arguments->get_ref<const std::string&>(), nullptr, false).is_object()) {
        text = arguments->get<std::string>();
      } else {
        return false;
      }
    } else if (format_ == ToolFormat::llama3) {
      return false;  // without a tag, an object that happens to have a name is not a call
    }
    calls.push_back({new_id(), named->get<std::string>(), std::move(text)});
    return true;
  };
  if (!value.is_array()) return read(value);
  return format_ != ToolFormat::llama3 && std::all_of(value.begin(), value.end(), read);
}

/// Mistral's templates want exactly nine letters and digits.
std::string ToolCallParser::new_id() {
  constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::string id = format_ == ToolFormat::mistral ? "" : "call_";
  const std::size_t length = format_ == ToolFormat::mistral ? 9 : id.size() + 24;
  while (id.size() < length) {
    random_ += 0x9E3779B97F4A7C15U;  // splitmix64
    std::uint64_t x = random_;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9U;
    x = (x ^ x >> 27) * 0x94D049BB133111EBU;
    id += kLetters[(x ^ x >> 31) % kLetters.size()];
  }
  return id;
}

}  // namespace spear
