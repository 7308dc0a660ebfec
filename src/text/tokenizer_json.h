// The parts of tokenizer.json and its companions, taken apart and checked.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "text/bpe.h"
#include "text/unigram.h"

namespace spear {

struct GgufTokenizer;

/// Moves vocabulary and merges out of a tokenizer.json, which keeps the rest. Throws Error(bad_input) for anything
/// but a deterministic BPE, byte-level or with byte_fallback, or a unigram model.
Vocabulary take_vocabulary(nlohmann::json& tokenizer, const std::string& where);
/// The inverse, for writing; merges are pairs of ids.
void put_vocabulary(nlohmann::json& tokenizer, const BpeModel& bpe, const std::vector<std::string>& spellings);
void put_vocabulary(nlohmann::json& tokenizer, const UnigramModel& unigram, const std::vector<std::string>& spellings);

/// The tokenizer.json that a GGUF tokenizer corresponds to, without vocabulary and merges, and these.
nlohmann::json skeleton_of_gguf(const GgufTokenizer& gguf, const std::string& where);
Vocabulary vocabulary_of_gguf(const GgufTokenizer& gguf, const std::string& where);

/// Ids that the post-processor puts before and after a single text.
struct SpecialFrame {
  std::vector<std::int32_t> prefix, suffix;
};
SpecialFrame parse_post_processor(const nlohmann::json& spec, const std::string& where);

/// Spaces that the decoder takes off the beginning of a text. Throws Error(bad_input) unless it is ByteLevel, or, where
/// symbols are characters, what SentencePiece models have: Replace "▁", ByteFallback, Fuse, Strip, or Metaspace.
std::size_t parse_decoder(const nlohmann::json& spec, bool characters, const std::string& where);

/// tokenizer_config.json's text of e.g. "bos_token": a string, or an object with "content"; nothing if absent.
std::optional<std::string> config_token(const nlohmann::json& config, const char* name, const std::string& where);
/// Its chat template: a string, or the one named "default" in a list; empty if absent.
std::string config_chat_template(const nlohmann::json& config, const std::string& where);

}  // namespace spear
