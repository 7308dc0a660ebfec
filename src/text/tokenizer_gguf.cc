// A GGUF tokenizer as the tokenizer.json it was made from.
#include "io/gguf.h"
#include "text/added_tokens.h"
#include "text/json_fields.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace spear {
namespace {

using nlohmann::json;

enum TokenType : std::int32_t { kUnknown = 2, kControl = 3, kUserDefined = 4 };

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
  const bool add_bos = gguf.add_bos.value_or(gguf.pre == "llama-bpe"), add_eos = gguf.add_eos.value_or(false);
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

json skeleton_of_gguf(const GgufTokenizer& gguf, const std::string& where) {
  if (gguf.model != "gpt2") {
    throw bad_input("the tokenizer \"" + gguf.model + "\" (tokenizer.ggml.model) is not supported (gpt2 is)", where,
                    "use a model with a byte-level BPE tokenizer");
  }
  if (gguf.add_space_prefix.value_or(false)) throw bad_input("add_space_prefix is not supported with BPE", where);
  if (!gguf.token_types.empty() && gguf.token_types.size() != gguf.tokens.size()) {
    throw bad_input("token types and tokens differ in number", where);
  }
  for (const std::string& token : gguf.tokens) {
    if (find_invalid_utf8(token) != std::string::npos) throw bad_input("a token is not UTF-8", where);
  }
  json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added_tokens_of(gguf)},
          {"normalizer", normalizer_of_gguf(gguf.pre)},
          {"pre_tokenizer", pretokenizer_of_gguf(gguf.pre, where)},
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
