// Text to token ids and back: BPE, byte-level or SentencePiece's, and unigram, with the ids of Hugging Face's `tokenizers`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/unigram.h"
#include "text/utf8.h"

namespace spear {

struct GgufTokenizer;

struct EncodeOptions {
  bool add_special = false;    ///< add what the model's post-processor adds (BOS for Llama 3, nothing for SmolLM2)
  bool parse_special = false;  ///< "<|im_end|>" in the text is that token; otherwise it is plain text
};

/// Ids with a meaning of their own; absent where the model names none.
struct NamedTokens {
  std::optional<std::int32_t> bos, eos, unk, pad;
  std::vector<std::int32_t> end;  ///< every id that ends a generation; `eos` is among them
};

/// Immutable after construction; every method may be called from several threads at once. Movable, not copyable.
class Tokenizer {
 public:
  /// From a parsed tokenizer.json, tokenizer_config.json and generation_config.json; the last two may be null. `where`
  /// names the file in errors. Throws Error(bad_input) naming whatever is malformed, or unsupported and able to change
  /// ids. "truncation" and "padding" are left out: the caller decides about lengths.
  static Tokenizer from_json(nlohmann::json tokenizer, const nlohmann::json& config, const nlohmann::json& generation,
                             const std::string& where);

  /// From a GGUF file's tokenizer: "gpt2" with the pre-tokenizer smollm, gpt-2, llama-bpe or qwen2, or "llama"
  /// (SentencePiece BPE with scores).
  static Tokenizer from_gguf(const GgufTokenizer& gguf, const std::string& where);

  /// Ids of UTF-8 text. Without parse_special no input can produce a special id. Bytes for which the vocabulary has
  /// no token become `unk` where the model has one and vanish otherwise, as in `tokenizers` (see missing_bytes).
  /// Throws Error(bad_input) with the byte position when the text isn't valid UTF-8.
  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  /// Valid UTF-8; bytes that form no character become U+FFFD. Throws Error(usage) for an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

  /// The bytes an id stands for; they need not be whole characters. Throws Error(usage) for an id outside.
  const std::string& token_bytes(std::int32_t id) const;

  /// Largest id + 1. The model's embedding may have more rows (padding).
  std::int32_t vocab_size() const { return static_cast<std::int32_t>(bytes_.size()); }
  const NamedTokens& named() const { return named_; }
  /// Spaces in front of a text that encoding added and decode() takes off again: 0 or 1.
  std::size_t prefix_spaces() const { return prefix_spaces_; }
  bool is_special(std::int32_t id) const { return added_.is_special(id); }
  /// Id of a token by its exact text, e.g. "<|im_end|>" (ordinary tokens in their byte-level spelling, "Ġthe").
  std::optional<std::int32_t> token_id(std::string_view spelling) const;
  /// Bytes that no token can represent; empty for most models, 21 of 256 for SmolLM2.
  std::vector<std::uint8_t> missing_bytes() const;

  /// Jinja source (see ChatTemplate), empty if the model has none.
  const std::string& chat_template() const { return chat_template_; }
  /// "bos_token", "eos_token", "unk_token", "pad_token" with their texts, as templates expect them.
  std::map<std::string, std::string> template_tokens() const;

  /// A tokenizer.json with which `tokenizers` gives the same ids, and the tokenizer_config.json beside it.
  std::string to_tokenizer_json() const;
  std::string to_tokenizer_config_json() const;

 private:
  struct EncodeState;

  Tokenizer(nlohmann::json skeleton, Vocabulary vocabulary, const std::string& where);
  void index_tokens(const std::string& where);
  void set_named(const nlohmann::json& config, const nlohmann::json& generation, const std::string& where);
  void finish_named(const std::string& where);
  void encode_words(std::string_view text, bool first, EncodeState& state) const;
  std::string bytes_of(const std::string& spelling) const;
  /// Ids of the model's tokens by their spelling; added tokens may be among them.
  const std::unordered_map<std::string, std::int32_t>& ids() const;

  nlohmann::json skeleton_;             // tokenizer.json without vocabulary and merges
  std::vector<std::string> spellings_;  // by id, as in tokenizer.json; empty for unused ids
  std::vector<std::string> bytes_;      // by id
  bool characters_ = false;             // SentencePiece's alphabet, see Vocabulary::characters
  std::variant<BpeModel, UnigramModel> model_;
  AddedTokens added_;
  Normalizer normalizer_;
  PreTokenizer pretokenizer_;
  std::size_t prefix_spaces_ = 0;
  std::vector<std::int32_t> prefix_, suffix_;  // what add_special adds
  NamedTokens named_;
  std::string chat_template_;
};

/// Turns ids into text as they arrive; what it returned so far is always valid UTF-8.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  /// The text that became complete with this id, often empty in the middle of a character.
  std::string push(std::int32_t id);
  /// Ends the text; an unfinished character becomes U+FFFD.
  std::string finish() { return stream_.finish(); }

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  Utf8Stream stream_;
};

/// The tokenizer of a GGUF file, a Hugging Face directory or a SPEAR checkpoint directory.
Tokenizer load_tokenizer(const std::filesystem::path& model);

}  // namespace spear
