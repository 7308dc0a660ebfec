// SentencePiece's unigram model: of all divisions of a word into pieces, the one with the greatest sum of scores.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"

namespace spear {

class UnigramModel {
 public:
  UnigramModel() = default;
  /// `vocabulary.log_probabilities` says which score each id has. Throws Error(bad_input) when a score is not finite, a
  /// piece is empty or `unk_token` is no piece.
  UnigramModel(Vocabulary vocabulary, const std::string& where);

  /// Appends the ids of a word (valid UTF-8), as `tokenizers` finds them: at equal sums the first division found stays;
  /// what no piece covers is an unknown character, runs of which are one; an unknown run becomes the tokens of its
  /// bytes where byte fallback has them all. Throws Error(bad_input) for an unknown character when the model has no
  /// unk. O(bytes × longest piece).
  void encode(std::string_view word, std::vector<std::int32_t>& out) const;

  const std::unordered_map<std::string, std::int32_t>& ids() const { return ids_; }
  double log_probability(std::int32_t id) const { return scores_[static_cast<std::size_t>(id)]; }
  /// Bytes without a token of their own; all of them without byte fallback.
  std::vector<std::uint8_t> missing_bytes() const;

 private:
  /// The best way to reach a position.
  struct Node {
    double score = 0;
    std::int64_t begin = -1;  ///< where the last piece starts; -1: not reached
    std::int32_t id = -1;
  };
  std::vector<Node> best_paths(std::string_view word) const;
  void add_piece(std::string_view piece, std::vector<std::int32_t>& out) const;

  std::unordered_map<std::string, std::int32_t> ids_;
  std::vector<double> scores_;  // by id
  // A trie of the pieces' bytes: (node << 8 | byte) -> node; node -> id of the piece that ends there, or -1.
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> ends_ = {-1};
  std::array<std::int32_t, 256> byte_ids_{};
  double unk_score_ = 0;
  std::int32_t unk_ = -1;
  bool byte_fallback_ = false;
};

}  // namespace spear
