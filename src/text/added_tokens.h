// Tokens that are found in the text as they are, before anything else happens to it.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace spear {

/// Ids beyond this are refused: no vocabulary is that large, and tables are indexed by id.
inline constexpr std::int32_t kMaxTokenId = (1 << 24) - 1;

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;              ///< sought in the normalized text
  bool lstrip = false, rstrip = false;  ///< takes white space on that side along
};

class AddedTokens {
 public:
  AddedTokens() = default;
  /// From tokenizer.json's "added_tokens" (null: none). Throws Error(bad_input) naming a malformed or unsupported one.
  AddedTokens(const nlohmann::json& spec, const std::string& where);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  bool is_special(std::int32_t id) const;

  /// Divides `text` into tokens (leftmost, longest) and stretches between them, none empty: emit(text, id or nothing).
  /// Only tokens whose `normalized` is as given are sought; special ones only if `parse_special`.
  void split(std::string_view text, bool normalized, bool parse_special,
             const std::function<void(std::string_view, std::optional<std::int32_t>)>& emit) const;

 private:
  /// Index of the longest token that starts at `text`, -1 if none.
  std::int32_t longest_at(std::string_view text, bool normalized) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::int32_t> special_;  // ids, sorted
  // A trie per value of `normalized`: (node << 8 | byte) -> node; node -> index of the token that ends there.
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> ends_ = {-1, -1};  // nodes 0 and 1 are the two roots
};

}  // namespace spear
