#include "eval/text_windows.h"

#include <fmt/format.h>

#include "base/error.h"

namespace spear {

std::optional<std::int32_t> opening_token(const Tokenizer& tokenizer) {
  const auto added = tokenizer.encode("", {.add_special = true});
  return !added.empty() && tokenizer.named().bos == added.front() ? std::optional(added.front()) : std::nullopt;
}

std::vector<std::int32_t> encode_sequence(const Tokenizer& tokenizer, std::string_view text) {
  auto ids = tokenizer.encode(text);
  if (const auto opening = opening_token(tokenizer)) ids.insert(ids.begin(), *opening);
  return ids;
}

TextWindows first_windows(const Tokenizer& tokenizer, std::string_view text, std::int64_t windows, std::int64_t context,
                          const std::string& where) {
  TextWindows result = first_windows(tokenizer.encode(text), windows, context, where);
  if (const auto opening = opening_token(tokenizer)) {
    for (std::int64_t i = 0; i < result.windows; ++i) result.tokens[static_cast<std::size_t>(i * context)] = *opening;
  }
  return result;
}

TextWindows first_windows(std::span<const std::int32_t> tokens, std::int64_t windows, std::int64_t context,
                          const std::string& where) {
  if (context < 2) throw usage_error(fmt::format("a context of {} tokens predicts nothing", context), "--context");
  if (windows < 0) throw usage_error(fmt::format("{} windows", windows), "--windows", "give 0 for all, or a number");
  const std::int64_t available = static_cast<std::int64_t>(tokens.size()) / context;
  if (available == 0 || windows > available) {
    throw bad_input(fmt::format("the text has {} tokens, which is {} windows of {}; {} needed", tokens.size(),
                                available, context, std::max<std::int64_t>(windows, 1)),
                    where, "give a longer text, fewer --windows or a smaller --context");
  }
  TextWindows result{windows == 0 ? available : windows, context, {}};
  const auto used = tokens.first(static_cast<std::size_t>(result.windows * context));
  result.tokens.assign(used.begin(), used.end());
  return result;
}

}  // namespace spear
