#include "text/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/json_fields.h"
#include "text/utf8.h"

namespace spear {
namespace {

std::size_t leading_space(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const Utf8Char c = read_utf8(text.substr(i));
    if (!is_white_space(c.code)) break;
    i += c.length;
  }
  return i;
}

std::size_t trailing_space(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t begin = end - 1;
    while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
    if (!is_white_space(read_utf8(text.substr(begin)).code)) break;
    end = begin;
  }
  return text.size() - end;
}

AddedToken parse_token(const nlohmann::json& spec, const std::string& where) {
  AddedToken token;
  token.content = json_text(spec, "content", where);
  const nlohmann::json& id = json_member(spec, "id", where);
  // The number is checked as it stands: 2^32 must not become 0.
  if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) throw json_type_error("id", "a token id", where);
  token.id = id.get<std::int32_t>();
  token.special = json_flag(spec, "special", false, where);
  token.normalized = json_flag(spec, "normalized", !token.special, where);
  token.lstrip = json_flag(spec, "lstrip", false, where);
  token.rstrip = json_flag(spec, "rstrip", false, where);
  if (token.content.empty()) throw bad_input("token " + std::to_string(token.id) + " has no text", where);
  if (json_flag(spec, "single_word", false, where)) {
    throw bad_input("the added token \"" + token.content + "\" has \"single_word\", which is not supported", where);
  }
  return token;
}

}  // namespace

AddedTokens::AddedTokens(const nlohmann::json& spec, const std::string& file) {
  if (spec.is_null()) return;
  const std::string where = file + ": added_tokens";
  if (!spec.is_array()) throw bad_input("an array was expected", where);
  for (const nlohmann::json& item : spec) {
    AddedToken token = parse_token(item, where);
    std::uint32_t node = token.normalized ? 1 : 0;
    for (const char byte : token.content) {
      const std::uint64_t edge = static_cast<std::uint64_t>(node) << 8 | static_cast<std::uint8_t>(byte);
      const auto [found, created] = edges_.try_emplace(edge, static_cast<std::uint32_t>(ends_.size()));
      if (created) ends_.push_back(-1);
      node = found->second;
    }
    if (ends_[node] >= 0) throw bad_input("the token \"" + token.content + "\" is listed twice", where);
    ends_[node] = static_cast<std::int32_t>(tokens_.size());
    if (token.special) special_.push_back(token.id);
    tokens_.push_back(std::move(token));
  }
  std::sort(special_.begin(), special_.end());
}

bool AddedTokens::is_special(std::int32_t id) const { return std::binary_search(special_.begin(), special_.end(), id); }

std::int32_t AddedTokens::longest_at(std::string_view text, bool normalized) const {
  std::uint32_t node = normalized ? 1 : 0;
  std::int32_t longest = -1;
  for (const char byte : text) {
    const auto edge = edges_.find(static_cast<std::uint64_t>(node) << 8 | static_cast<std::uint8_t>(byte));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (ends_[node] >= 0) longest = ends_[node];
  }
  return longest;
}

void AddedTokens::split(std::string_view text, bool normalized, bool parse_special,
                        const std::function<void(std::string_view, std::optional<std::int32_t>)>& emit) const {
  std::size_t done = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::int32_t index = longest_at(text.substr(i), normalized);
    if (index < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<std::size_t>(index)];
    std::size_t begin = i, end = i + token.content.size();
    i = end;
    if (token.special && !parse_special) continue;
    if (token.lstrip) begin -= trailing_space(text.substr(done, begin - done));
    if (token.rstrip) end += leading_space(text.substr(end));
    if (done < begin) emit(text.substr(done, begin - done), std::nullopt);
    emit(text.substr(begin, end - begin), token.id);
    done = end;
    i = end;
  }
  if (done < text.size()) emit(text.substr(done), std::nullopt);
}

}  // namespace spear
