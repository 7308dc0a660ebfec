#include "eval/text_windows.h"

#include <fmt/format.h>

#include "base/error.h"

namespace spear {

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
