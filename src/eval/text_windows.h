// The windows of a text on which models are compared: the first N, not overlapping.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/forward_model.h"
#include "text/tokenizer.h"

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

/// The token that every sequence of this model begins with (BOS of Llama 3, Mistral, Gemma), if there is one.
std::optional<std::int32_t> opening_token(const Tokenizer& tokenizer);

/// Ids of a text by itself: the opening token, if there is one, and the text's.
std::vector<std::int32_t> encode_sequence(const Tokenizer& tokenizer, std::string_view text);

/// Windows of a text as below; the opening token, if there is one, takes the place of each window's first token.
TextWindows first_windows(const Tokenizer& tokenizer, std::string_view text, std::int64_t windows, std::int64_t context,
                          const std::string& where);

/// The first `windows` windows of `context` tokens; windows == 0 takes all that fit. `where` names the text in errors.
/// Throws Error(bad_input) when the text is too short, Error(usage) when context < 2 or windows < 0.
TextWindows first_windows(std::span<const std::int32_t> tokens, std::int64_t windows, std::int64_t context,
                          const std::string& where);

}  // namespace spear
