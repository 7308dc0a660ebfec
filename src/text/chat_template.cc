#include "text/chat_template.h"

#include "base/error.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"
#include "text/utf8.h"

namespace spear {

ChatTemplate::ChatTemplate(std::string_view source, TemplateLimits limits, std::optional<std::time_t> now)
    : limits_(limits), now_(now) {
  if (source.size() > limits.source_bytes) {
    throw bad_input("the template is longer than " + std::to_string(limits.source_bytes) + " bytes", "chat template");
  }
  if (find_invalid_utf8(source) != std::string_view::npos)
    throw bad_input("the template is not UTF-8", "chat template");
  root_ = std::make_shared<const jinja::Block>(jinja::parse(source));
}

std::string ChatTemplate::render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                 const std::map<std::string, std::string>& tokens,
                                 const nlohmann::ordered_json& extra) const {
  if (!messages.is_array()) throw usage_error("messages must be an array", "chat template");
  if (!extra.is_object()) throw usage_error("extra variables must be an object", "chat template");
  const nlohmann::ordered_json named = tokens, generation_prompt = add_generation_prompt;
  jinja::Variables variables;
  for (const nlohmann::ordered_json* group : {&named, &extra}) {
    for (const auto& [name, value] : group->items()) variables[name] = &value;
  }
  variables["messages"] = &messages;
  variables["add_generation_prompt"] = &generation_prompt;
  const std::time_t now = now_ ? *now_ : std::time(nullptr);
  std::tm date{};
  now_ ? gmtime_r(&now, &date) : localtime_r(&now, &date);
  return jinja::interpret(*root_, variables, limits_, date);
}

std::string chat_opening(std::string_view template_source, const std::map<std::string, std::string>& tokens,
                         std::string_view system) {
  if (template_source.empty()) return {};
  static constexpr std::string_view kMarker = "7d1f-user-content-9c3e";
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", kMarker}});
  constexpr std::time_t kDate = 1721952000;  // 26 July 2024: the same recipe makes the same samples on any day
  const std::string text = ChatTemplate(template_source, {}, kDate).render(messages, false, tokens);
  const std::size_t marker = text.find(kMarker);
  return marker == std::string::npos ? std::string() : text.substr(0, marker);
}

}  // namespace spear
