// A GGUF tokenizer as the tokenizer.json it was made from.
#include <cmath>

#include "io/gguf.h"
#include "text/added_tokens.h"
#include "text/json_fields.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace spear {
namespace {

using nlohmann::json;

enum TokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };

bool is_sentencepiece(const GgufTokenizer& gguf) { return gguf.model == "llama"; }

json added_tokens_of(const GgufTokenizer& gguf) {
  json result = json::array();
  for (std::size_t id = 0; id < gguf.token_types.size(); ++id) {
    const std::int32_t type = gguf.token_types[id];
    if (type != kUnknown && type != kControl && type != kUserDefined) continue;
    result.push_back({{"id", id},
                      {"content", gguf.tokens[id]},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", type != kUserDefined}});
  }
  return result;
}

/// TemplateProcessing that adds BOS and EOS; null if neither is wanted.
json post_processor_of(const GgufTokenizer& gguf, const std::string& where) {
  // llama.cpp's rule for files that don't say.
  const bool add_bos = gguf.add_bos.value_or(gguf.pre == "llama-bpe" || is_sentencepiece(gguf)),
             add_eos = gguf.add_eos.value_or(false);
  if (!add_bos && !add_eos) return nullptr;
  json special = json::object();
  const auto piece = [&](std::optional<std::int64_t> id, const char* name) -> json {
    if (!id) throw bad_input(std::string("the tokenizer adds ") + name + " but names none", where);
    if (*id < 0 || static_cast<std::uint64_t>(*id) >= gguf.tokens.size()) {
      throw bad_input(std::string("the id of ") + name + " lies outside the vocabulary", where);
    }
    const std::string& text = gguf.tokens[static_cast<std::size_t>(*id)];
    special[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
    return {{"SpecialToken", {{"id", text}, {"type_id", 0}}}};
  };
  json single = json::array(), pair = json::array();
  const json bos = add_bos ? piece(gguf.bos_id, "BOS") : json(), eos = add_eos ? piece(gguf.eos_id, "EOS") : json();
  for (const char* sequence : {"A", "B"}) {
    const int type_id = *sequence - 'A';
    const json text = {{"Sequence", {{"id", sequence}, {"type_id", type_id}}}};
    for (json part : {bos, text, eos}) {
      if (part.is_null()) continue;
      if (type_id == 0) single.push_back(part);
      if (part.contains("SpecialToken")) part["SpecialToken"]["type_id"] = type_id;
      pair.push_back(std::move(part));
    }
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

}  // namespace

namespace {

/// Spaces as "▁", one in front of the text unless the file says no.
void make_sentencepiece(const GgufTokenizer& gguf, json& skeleton) {
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\xE2\x96\x81"}};
  json decoders = json::array({{{"type", "Replace"}, {"pattern", {{"String", "\xE2\x96\x81"}}}, {"content", " "}},
                               {{"type", "ByteFallback"}},
                               {{"type", "Fuse"}}});
  skeleton["normalizer"] = replace;
  if (gguf.add_space_prefix.value_or(true)) {
    skeleton["normalizer"] = {
        {"type", "Sequence"},
        {"normalizers", json::array({{{"type", "Prepend"}, {"prepend", "\xE2\x96\x81"}}, replace})}};
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  skeleton["pre_tokenizer"] = nullptr;
  skeleton["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  json& model = skeleton["model"];
  model["byte_fallback"] = model["fuse_unk"] = true;
  if (gguf.unknown_id) model["unk_token"] = gguf.tokens[static_cast<std::size_t>(*gguf.unknown_id)];
}

}  // namespace

json skeleton_of_gguf(const GgufTokenizer& gguf, const std::string& where) {
  const bool sentencepiece = is_sentencepiece(gguf);
  if (gguf.model != "gpt2" && !sentencepiece) {
    throw bad_input("the tokenizer \"" + gguf.model + "\" (tokenizer.ggml.model) is not supported (gpt2 and llama are)",
                    where, "use a model with a BPE tokenizer");
  }
  if (sentencepiece && gguf.scores.empty())
    throw bad_input("a llama tokenizer without scores", where, "the file is damaged");
  if (!sentencepiece && gguf.add_space_prefix.value_or(false))
    throw bad_input("add_space_prefix is not supported with BPE", where);
  if (!gguf.token_types.empty() && gguf.token_types.size() != gguf.tokens.size()) {
    throw bad_input("token types and tokens differ in number", where);
  }
  for (const std::string& token : gguf.tokens) {
    if (find_invalid_utf8(token) != std::string::npos) throw bad_input("a token is not UTF-8", where);
  }
  json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  json skeleton = {{"version", "1.0"},
                   {"truncation", nullptr},
                   {"padding", nullptr},
                   {"added_tokens", added_tokens_of(gguf)},
                   {"normalizer", sentencepiece ? json() : normalizer_of_gguf(gguf.pre)},
                   {"pre_tokenizer", sentencepiece ? json() : pretokenizer_of_gguf(gguf.pre, where)},
                   {"post_processor", post_processor_of(gguf, where)},
                   {"decoder", std::move(byte_level)},
                   {"model",
                    {{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", gguf.pre == "llama-bpe"}}}};
  if (sentencepiece) make_sentencepiece(gguf, skeleton);
  return skeleton;
}

Vocabulary vocabulary_of_gguf(const GgufTokenizer& gguf, const std::string& where) {
  Vocabulary result;
  result.ignore_merges = gguf.pre == "llama-bpe";
  result.ids.reserve(gguf.tokens.size());
  for (std::size_t id = 0; id < gguf.tokens.size(); ++id) {
    if (!result.ids.emplace(gguf.tokens[id], static_cast<std::int32_t>(id)).second) {
      throw bad_input("the token \"" + gguf.tokens[id] + "\" is listed twice", where);
    }
  }
  if (is_sentencepiece(gguf)) {
    result.characters = result.fuse_unk = true;
    if (gguf.unknown_id) result.unk_token = gguf.tokens[static_cast<std::size_t>(*gguf.unknown_id)];
    result.scores = gguf.scores;
    for (std::size_t id = 0; id < result.scores.size(); ++id) {
      // Gemma's runs of spaces are found in the text as they are: once it is escaped nothing can become them.
      const bool spaces = gguf.tokens[id].find(' ') != std::string::npos;
      const bool mergeable = !spaces && (gguf.token_types[id] == kNormal || gguf.token_types[id] == kUserDefined);
      if (!mergeable) result.scores[id] = NAN;
      if (mergeable && std::isnan(result.scores[id]))
        throw bad_input("the score of token " + std::to_string(id) + " is NaN", where, "the file is damaged");
    }
    return result;
  }
  result.merges.reserve(gguf.merges.size());
  for (const std::string& merge : gguf.merges) {
    const std::size_t space = merge.find(' ');
    if (space == 0 || space == std::string::npos || space + 1 == merge.size() ||
        merge.find(' ', space + 1) != std::string::npos) {
      throw bad_input("the merge \"" + merge + "\" is not a pair of tokens", where);
    }
    result.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return result;
}

}  // namespace spear
