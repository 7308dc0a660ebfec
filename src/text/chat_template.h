// Chat templates: the part of Jinja that models' templates use, rendered as Hugging Face renders it.
#pragma once

#include <cstddef>
#include <ctime>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace spear {

namespace jinja {
struct Block;
}

/// What a template may cost; templates come with models and are not trusted.
struct TemplateLimits {
  std::size_t source_bytes = std::size_t{1} << 20;
  std::size_t output_bytes = std::size_t{16} << 20;  ///< also of every string it builds
  std::size_t steps = 5'000'000;                     ///< expressions evaluated and list elements made
};

/// A parsed template; immutable, may be rendered by several threads at once. trim_blocks and lstrip_blocks are on, as
/// in `transformers`. Copies share the parsed form.
class ChatTemplate {
 public:
  /// Throws Error(bad_input) with line and column for bad syntax and for anything outside the supported subset. `now`:
  /// what strftime_now() takes for the present, in UTC; nothing: the clock, in local time, as in `transformers`.
  explicit ChatTemplate(std::string_view source, TemplateLimits limits = {}, std::optional<std::time_t> now = {});

  /// `messages`: array of {"role", "content", ...}. `tokens`: "bos_token", "eos_token", ... (Tokenizer::
  /// template_tokens). `extra`: object with more variables, e.g. "tools" or "enable_thinking"; key order is kept.
  /// Throws Error(bad_input) with line and column when the template raises an exception (its own text is the
  /// problem), uses an undefined value or exceeds the limits.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                     const std::map<std::string, std::string>& tokens,
                     const nlohmann::ordered_json& extra = nlohmann::ordered_json::object()) const;

 private:
  std::shared_ptr<const jinja::Block> root_;
  TemplateLimits limits_;
  std::optional<std::time_t> now_;
};

/// The text up to where the first user message's content begins, e.g. "<|im_start|>user\n" after the system message:
/// what a model is given to make up user turns. Templates that ask for the date get a fixed one. An empty `system`
/// leaves the system message to the template. Empty when there is no template or its output doesn't contain the
/// content.
std::string chat_opening(std::string_view template_source, const std::map<std::string, std::string>& tokens,
                         std::string_view system = {});

}  // namespace spear
