// Byte-pair encoding of one word.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace spear {

/// GPT-2's alphabet, in which every byte is a printable character: "Ġ" is a space.
std::string bytes_to_spelling(std::string_view bytes);
/// The inverse; nothing if the text has a character outside the alphabet.
std::optional<std::string> spelling_to_bytes(std::string_view spelling);

/// What a BPE or unigram model consists of, in the spelling of tokenizer.json.
struct Vocabulary {
  std::unordered_map<std::string, std::int32_t> ids;        ///< ids are >= 0 and distinct
  std::vector<std::pair<std::string, std::string>> merges;  ///< by rank
  std::string unk_token;                                    ///< empty: unknown bytes vanish
  bool fuse_unk = false;                                    ///< a run of unknown bytes is one unk
  bool ignore_merges = false;                               ///< a word that is a token is that token
  /// Symbols are characters, spelled as they are, instead of bytes in GPT-2's alphabet; characters that are no token
  /// become the tokens "<0x00>" to "<0xFF>" of their bytes (SentencePiece's byte_fallback).
  bool characters = false;
  /// By id, instead of merges: two symbols merge if the result is a token, highest score first (SentencePiece). NaN:
  /// never the result of a merge.
  std::vector<float> scores = {};
  /// By id: a unigram model (UnigramModel) instead of BPE; merges and scores are empty then.
  std::vector<double> log_probabilities = {};
  bool byte_fallback = false;  ///< of a unigram model; BPE has it wherever symbols are characters
};

class BpeModel {
 public:
  BpeModel() = default;
  /// Throws Error(bad_input) naming the merge whose parts or result are no tokens.
  BpeModel(Vocabulary vocabulary, const std::string& where);

  /// Appends the ids of a word given as raw bytes. O(n log n).
  void encode(std::string_view word, std::vector<std::int32_t>& out) const;

  const std::unordered_map<std::string, std::int32_t>& ids() const { return ids_; }
  /// (left, right) ids by rank. With scores these are all divisions of all tokens: of use for writing alone.
  std::vector<std::pair<std::int32_t, std::int32_t>> merges() const;
  std::vector<std::uint8_t> missing_bytes() const;

 private:
  struct Merge {
    std::int32_t rank, id;
  };
  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }
  std::vector<std::int32_t> initial_symbols(std::string_view word) const;
  void add_character(std::string_view character, std::vector<std::int32_t>& symbols) const;
  std::optional<Merge> find_merge(std::int32_t left, std::int32_t right) const;
  void rank_by_score(const std::vector<float>& scores, const std::string& where);

  std::unordered_map<std::string, std::int32_t> ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::int32_t unk_ = -1;
  bool fuse_unk_ = false, ignore_merges_ = false, characters_ = false;
  std::vector<std::int32_t> ranks_;       // by id, of scores; -1: no result of a merge. Empty: merges_ count
  std::vector<std::string_view> tokens_;  // by id, beside ranks_; view the keys of ids_
};

}  // namespace spear
