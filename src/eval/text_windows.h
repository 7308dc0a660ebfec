// The windows of a text on which models are compared: the first N, not overlapping, no token added.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/forward_model.h"

namespace spear {

struct TextWindows {
  std::int64_t windows = 0, context = 0;
  std::vector<std::int32_t> tokens;  ///< [windows, context]

  /// Token t + 1 is predicted from tokens 0..t, so a window yields context - 1 predictions.
  std::int64_t predictions() const { return windows * (context - 1); }
  std::span<const std::int32_t> window(std::int64_t index) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(index * context), static_cast<std::size_t>(context));
  }
};

/// The first `windows` windows of `context` tokens; windows == 0 takes all that fit. `where` names the text in errors.
/// Throws Error(bad_input) when the text is too short, Error(usage) when context < 2 or windows < 0.
TextWindows first_windows(std::span<const std::int32_t> tokens, std::int64_t windows, std::int64_t context,
                          const std::string& where);

}  // namespace spear
