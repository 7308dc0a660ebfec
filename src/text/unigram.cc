#include "text/unigram.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "text/utf8.h"

namespace spear {
namespace {

constexpr double kUnknownPenalty = 10;  // below the worst piece, as in SentencePiece

}  // namespace

UnigramModel::UnigramModel(Vocabulary vocabulary, const std::string& where)
    : ids_(std::move(vocabulary.ids)),
      scores_(std::move(vocabulary.log_probabilities)),
      byte_fallback_(vocabulary.byte_fallback) {
  constexpr const char* kRemedy = "fetch the model again; its tokenizer is damaged";
  for (const double score : scores_) {
    if (!std::isfinite(score)) throw bad_input("the score of a piece is not a finite number", where, kRemedy);
  }
  for (const auto& [piece, id] : ids_) {
    if (piece.empty() || static_cast<std::size_t>(id) >= scores_.size())
      throw bad_input("a piece is empty or has no score", where, kRemedy);
    std::uint32_t node = 0;
    for (const char c : piece) {
      const std::uint64_t edge = std::uint64_t{node} << 8 | static_cast<std::uint8_t>(c);
      const auto [found, added] = edges_.try_emplace(edge, static_cast<std::uint32_t>(ends_.size()));
      if (added) ends_.push_back(-1);
      node = found->second;
    }
    ends_[node] = id;
  }
  for (std::size_t b = 0; b < byte_ids_.size(); ++b) {
    const auto found = ids_.find(fmt::format("<0x{:02X}>", b));
    byte_ids_[b] = byte_fallback_ && found != ids_.end() ? found->second : -1;
  }
  if (!vocabulary.unk_token.empty()) {
    const auto found = ids_.find(vocabulary.unk_token);
    if (found == ids_.end()) throw bad_input("the unknown token is no piece", where, kRemedy);
    unk_ = found->second;
  }
  unk_score_ = (scores_.empty() ? 0 : *std::min_element(scores_.begin(), scores_.end())) - kUnknownPenalty;
}

std::vector<UnigramModel::Node> UnigramModel::best_paths(std::string_view word) const {
  std::vector<Node> best(word.size() + 1);
  const auto reach = [&](std::size_t begin, std::size_t end, double score, std::int32_t id) {
    Node& node = best[end];
    const double sum = best[begin].score + score;
    if (node.begin < 0 || sum > node.score) node = {sum, static_cast<std::int64_t>(begin), id};
  };
  for (std::size_t begin = 0; begin < word.size();) {
    const std::size_t character = read_utf8(word.substr(begin)).length;
    bool known = false;  // whether the character alone is a piece
    std::uint32_t node = 0;
    for (std::size_t end = begin; end < word.size();) {
      const auto edge = edges_.find(std::uint64_t{node} << 8 | static_cast<std::uint8_t>(word[end]));
      if (edge == edges_.end()) break;
      node = edge->second;
      ++end;
      if (ends_[node] < 0) continue;
      reach(begin, end, scores_[static_cast<std::size_t>(ends_[node])], ends_[node]);
      known = known || end - begin == character;
    }
    if (!known) reach(begin, begin + character, unk_score_, unk_);
    begin += character;
  }
  return best;
}

/// A run that the model does not know. It may spell a piece all the same: one that lost to its parts.
void UnigramModel::add_piece(std::string_view piece, std::vector<std::int32_t>& out) const {
  if (const auto found = ids_.find(std::string(piece)); found != ids_.end()) return out.push_back(found->second);
  const bool all_bytes = byte_fallback_ && std::all_of(piece.begin(), piece.end(), [&](char c) {
                           return byte_ids_[static_cast<std::uint8_t>(c)] >= 0;
                         });
  if (all_bytes) {
    for (const char c : piece) out.push_back(byte_ids_[static_cast<std::uint8_t>(c)]);
    return;
  }
  if (unk_ < 0) {
    throw bad_input("the text has a character that the tokenizer has no piece for, and it has no unknown token", {},
                    "leave the character out, or use a model whose tokenizer knows all bytes");
  }
  out.push_back(unk_);
}

void UnigramModel::encode(std::string_view word, std::vector<std::int32_t>& out) const {
  const std::vector<Node> best = best_paths(word);
  std::vector<std::string_view> pieces;  // last one first; neighbouring unknown ones joined
  bool after_unknown = false;
  for (std::size_t end = word.size(); end > 0;) {
    const auto begin = static_cast<std::size_t>(best[end].begin);
    const bool unknown = best[end].id == unk_;
    if (unknown && after_unknown) {
      pieces.back() = word.substr(begin, end - begin + pieces.back().size());
    } else {
      pieces.push_back(word.substr(begin, end - begin));
    }
    after_unknown = unknown;
    end = begin;
  }
  for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) add_piece(*piece, out);
}

std::vector<std::uint8_t> UnigramModel::missing_bytes() const {
  std::vector<std::uint8_t> result;
  for (std::size_t b = 0; b < byte_ids_.size(); ++b) {
    if (byte_ids_[b] < 0) result.push_back(static_cast<std::uint8_t>(b));
  }
  return result;
}

}  // namespace spear
