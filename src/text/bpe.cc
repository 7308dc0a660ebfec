#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <queue>

#include "base/error.h"
#include "text/utf8.h"

namespace spear {
namespace {

/// GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others follow from U+0100.
const std::array<char32_t, 256>& byte_alphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> result{};
    char32_t next = 256;
    for (char32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      result[b] = printable ? b : next++;
    }
    return result;
  }();
  return alphabet;
}

/// A position in the word's linked list of symbols.
struct Symbol {
  std::int32_t id;
  std::int32_t previous, next;  // -1: none
};

struct Candidate {
  std::int32_t rank, position, id;
  bool operator<(const Candidate& other) const {  // the top of the heap has the lowest rank, then the leftmost position
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

}  // namespace

std::string bytes_to_spelling(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) append_utf8(out, byte_alphabet()[static_cast<std::uint8_t>(byte)]);
  return out;
}

std::optional<std::string> spelling_to_bytes(std::string_view spelling) {
  static const std::array<std::int16_t, 512> inverse = [] {
    std::array<std::int16_t, 512> result;
    result.fill(-1);
    for (int b = 0; b < 256; ++b) result[byte_alphabet()[b]] = static_cast<std::int16_t>(b);
    return result;
  }();
  std::string out;
  for (std::size_t i = 0; i < spelling.size();) {
    const Utf8Char c = read_utf8(spelling.substr(i));
    if (c.kind != Utf8Char::Kind::valid || c.code >= inverse.size() || inverse[c.code] < 0) return std::nullopt;
    out += static_cast<char>(inverse[c.code]);
    i += c.length;
  }
  return out;
}

BpeModel::BpeModel(Vocabulary vocabulary, const std::string& where)
    : ids_(std::move(vocabulary.ids)),
      fuse_unk_(vocabulary.fuse_unk),
      ignore_merges_(vocabulary.ignore_merges),
      characters_(vocabulary.characters) {
  const auto id_of = [&](const std::string& token, std::size_t rank) {
    const auto found = ids_.find(token);
    if (found == ids_.end()) {
      throw bad_input(
          "merge " + std::to_string(rank) + " needs the token \"" + token + "\", which is not in the vocabulary", where,
          "fetch the model again; its tokenizer is damaged");
    }
    return found->second;
  };
  for (std::size_t b = 0; b < 256; ++b) {
    const auto found =
        ids_.find(characters_ ? fmt::format("<0x{:02X}>", b) : bytes_to_spelling(std::string(1, static_cast<char>(b))));
    byte_ids_[b] = found == ids_.end() ? -1 : found->second;
  }
  if (!vocabulary.unk_token.empty()) {
    const auto found = ids_.find(vocabulary.unk_token);
    if (found == ids_.end())
      throw bad_input("unk_token \"" + vocabulary.unk_token + "\" is not in the vocabulary", where);
    unk_ = found->second;
  }
  if (!vocabulary.scores.empty()) {
    rank_by_score(vocabulary.scores, where);
    return;
  }
  merges_.reserve(vocabulary.merges.size());
  for (std::size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const auto& [left, right] = vocabulary.merges[rank];
    const std::int32_t left_id = id_of(left, rank), right_id = id_of(right, rank);
    const std::uint64_t pair = key(left_id, right_id);
    merges_[pair] = {static_cast<std::int32_t>(rank), id_of(left + right, rank)};  // the last of equal merges counts
  }
}

void BpeModel::rank_by_score(const std::vector<float>& scores, const std::string& where) {
  std::vector<std::int32_t> order;
  for (std::size_t id = 0; id < scores.size(); ++id) {
    if (!std::isnan(scores[id])) order.push_back(static_cast<std::int32_t>(id));
  }
  const auto score = [&](std::int32_t id) { return scores[static_cast<std::size_t>(id)]; };
  std::sort(order.begin(), order.end(),
            [&](auto a, auto b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  ranks_.assign(scores.size(), -1);
  std::int32_t rank = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {  // equal scores have equal ranks: the leftmost pair goes first then
    if (i > 0 && score(order[i]) != score(order[i - 1])) rank = static_cast<std::int32_t>(i);
    ranks_[static_cast<std::size_t>(order[i])] = rank;
  }
  tokens_.resize(scores.size());
  for (const auto& [token, id] : ids_) {
    if (static_cast<std::size_t>(id) >= tokens_.size())
      throw bad_input("a token has no score", where, "fetch the model again; its tokenizer is damaged");
    tokens_[static_cast<std::size_t>(id)] = token;
  }
}

std::optional<BpeModel::Merge> BpeModel::find_merge(std::int32_t left, std::int32_t right) const {
  if (ranks_.empty()) {
    const auto found = merges_.find(key(left, right));
    return found == merges_.end() ? std::nullopt : std::optional(found->second);
  }
  std::string text(tokens_[static_cast<std::size_t>(left)]);
  text += tokens_[static_cast<std::size_t>(right)];
  const auto found = ids_.find(text);
  if (found == ids_.end() || ranks_[static_cast<std::size_t>(found->second)] < 0) return std::nullopt;
  return Merge{ranks_[static_cast<std::size_t>(found->second)], found->second};
}

/// A character's token, or those of its bytes; one unk if any of these is missing.
void BpeModel::add_character(std::string_view character, std::vector<std::int32_t>& symbols) const {
  if (const auto found = ids_.find(std::string(character)); found != ids_.end()) {
    symbols.push_back(found->second);
    return;
  }
  const std::size_t begin = symbols.size();
  for (const char byte : character) {
    const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(byte)];
    if (id >= 0) {
      symbols.push_back(id);
      continue;
    }
    symbols.resize(begin);
    if (unk_ >= 0 && !(fuse_unk_ && !symbols.empty() && symbols.back() == unk_)) symbols.push_back(unk_);
    return;
  }
}

std::vector<std::int32_t> BpeModel::initial_symbols(std::string_view word) const {
  std::vector<std::int32_t> symbols;
  symbols.reserve(word.size());
  if (characters_) {
    for (std::size_t i = 0; i < word.size();) {
      const std::size_t length = read_utf8(word.substr(i)).length;
      add_character(word.substr(i, length), symbols);
      i += length;
    }
    return symbols;
  }
  bool after_unk = false;
  for (const char byte : word) {
    const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(byte)];
    if (id >= 0) {
      symbols.push_back(id);
    } else if (unk_ >= 0 && !(fuse_unk_ && after_unk)) {
      symbols.push_back(unk_);
    }
    after_unk = id < 0;
  }
  return symbols;
}

void BpeModel::encode(std::string_view word, std::vector<std::int32_t>& out) const {
  if (ignore_merges_) {
    const std::string spelling = characters_ ? std::string(word) : bytes_to_spelling(word);
    if (const auto found = ids_.find(spelling); found != ids_.end()) {
      out.push_back(found->second);
      return;
    }
  }
  const std::vector<std::int32_t> initial = initial_symbols(word);
  const auto count = static_cast<std::int32_t>(initial.size());
  std::vector<Symbol> symbols(initial.size());
  std::vector<Candidate> candidates;
  const auto merge_at = [&](std::int32_t left) -> std::optional<Merge> {
    if (left < 0 || symbols[left].next < 0) return std::nullopt;
    return find_merge(symbols[left].id, symbols[symbols[left].next].id);
  };
  for (std::int32_t i = 0; i < count; ++i) symbols[i] = {initial[i], i - 1, i + 1 < count ? i + 1 : -1};
  for (std::int32_t i = 0; i < count; ++i) {
    if (const auto merge = merge_at(i)) candidates.push_back({merge->rank, i, merge->id});
  }
  std::priority_queue<Candidate> heap(std::less<Candidate>(), std::move(candidates));
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    // Entries whose symbols have been merged otherwise since are stale.
    const auto current = symbols[best.position].id < 0 ? std::nullopt : merge_at(best.position);
    if (!current || current->id != best.id) continue;
    Symbol& left = symbols[best.position];
    Symbol& right = symbols[left.next];
    right.id = -1;
    left.id = best.id;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    for (const std::int32_t position : {left.previous, best.position}) {
      if (const auto merge = merge_at(position)) heap.push({merge->rank, position, merge->id});
    }
  }
  for (std::int32_t i = count > 0 ? 0 : -1; i >= 0; i = symbols[i].next) out.push_back(symbols[i].id);
}

std::vector<std::pair<std::int32_t, std::int32_t>> BpeModel::merges() const {
  std::vector<std::pair<std::int32_t, std::uint64_t>> ranked;
  for (const auto& [pair, merge] : merges_) ranked.emplace_back(merge.rank, pair);
  for (std::size_t id = 0; id < ranks_.size(); ++id) {
    if (ranks_[id] < 0) continue;
    const std::string_view token = tokens_[id];
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      if ((static_cast<unsigned char>(token[cut]) & 0xC0U) == 0x80) continue;  // within a character
      const auto left = ids_.find(std::string(token.substr(0, cut))), right = ids_.find(std::string(token.substr(cut)));
      if (left != ids_.end() && right != ids_.end()) ranked.emplace_back(ranks_[id], key(left->second, right->second));
    }
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::pair<std::int32_t, std::int32_t>> result;
  for (const auto& [rank, pair] : ranked) {
    result.emplace_back(static_cast<std::int32_t>(pair >> 32), static_cast<std::int32_t>(pair & 0xFFFFFFFF));
  }
  return result;
}

std::vector<std::uint8_t> BpeModel::missing_bytes() const {
  std::vector<std::uint8_t> result;
  for (int b = 0; b < 256; ++b) {
    if (byte_ids_[b] < 0) result.push_back(static_cast<std::uint8_t>(b));
  }
  return result;
}

}  // namespace spear
