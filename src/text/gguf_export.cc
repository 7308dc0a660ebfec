#include "text/gguf_export.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/pretokenizer.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr const char* kRemedy = "pass --tokenizer with a GGUF file of this model: its tokenizer is copied";
enum TokenType : std::int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

/// Without what doesn't change ids, defaults filled in.
json canonical(json spec) {
  if (!spec.is_object()) return spec;
  spec.erase("trim_offsets");
  if (spec.value("type", "") == "ByteLevel" && !spec.contains("use_regex")) spec["use_regex"] = true;
  if (spec.value("type", "") == "Split" && !spec.contains("invert")) spec["invert"] = false;
  const auto steps = spec.find("pretokenizers");
  if (steps == spec.end()) return spec;
  for (json& step : *steps) step = canonical(std::move(step));
  return spec;
}

/// llama.cpp's name for what happens to text before BPE.
std::string pre_of(const json& tokenizer, const std::string& where) {
  const bool ignore_merges = tokenizer.at("model").value("ignore_merges", false);
  for (const char* pre : {"smollm", "gpt-2", "llama-bpe", "qwen2"}) {
    if (canonical(tokenizer.value("pre_tokenizer", json())) == canonical(pretokenizer_of_gguf(pre, where)) &&
        tokenizer.value("normalizer", json()) == normalizer_of_gguf(pre) &&
        ignore_merges == (std::string_view(pre) == "llama-bpe")) {
      return pre;
    }
  }
  throw usage_error("llama.cpp's name for this pre-tokenizer is not known", where, kRemedy);
}

void add_frame(const Tokenizer& tokenizer, GgufTokenizer& out, const std::string& where) {
  auto frame = tokenizer.encode("", {.add_special = true});
  out.add_bos = !frame.empty() && out.bos_id == frame.front();
  if (*out.add_bos) frame.erase(frame.begin());
  out.add_eos = !frame.empty() && out.eos_id == frame.front();
  if (*out.add_eos) frame.erase(frame.begin());
  if (!frame.empty()) throw usage_error("GGUF has no word for what the post-processor adds", where, kRemedy);
}

}  // namespace

GgufTokenizer gguf_tokenizer_of(const Tokenizer& tokenizer, std::int64_t vocab_size, const std::string& where) {
  const json document = json::parse(tokenizer.to_tokenizer_json());
  const json& model = document.at("model");
  if (model.value("byte_fallback", false)) {
    throw usage_error("tokenizer.json has no scores, which GGUF's SentencePiece tokenizers need", where, kRemedy);
  }
  GgufTokenizer out;
  out.model = "gpt2";
  out.pre = pre_of(document, where);
  if (tokenizer.vocab_size() > vocab_size) {
    throw usage_error(fmt::format("{} tokens, but the embedding has {} rows", tokenizer.vocab_size(), vocab_size), where,
                      "the tokenizer belongs to another model");
  }
  out.tokens.resize(static_cast<std::size_t>(vocab_size));
  out.token_types.assign(out.tokens.size(), kUnused);
  const auto put = [&](const json& id, const std::string& text, TokenType type) {
    out.tokens[id.get<std::size_t>()] = text;
    out.token_types[id.get<std::size_t>()] = type;
  };
  for (const auto& [text, id] : model.at("vocab").items()) put(id, text, kNormal);
  for (const json& added : document.at("added_tokens")) {
    put(added.at("id"), added.at("content").get<std::string>(), added.value("special", false) ? kControl : kUserDefined);
  }
  for (std::size_t id = 0; id < out.tokens.size(); ++id) {
    if (out.token_types[id] == kUnused) out.tokens[id] = fmt::format("[PAD{}]", id);
  }
  for (const json& merge : model.at("merges")) out.merges.push_back(merge.get<std::string>());
  const NamedTokens& named = tokenizer.named();
  out.bos_id = named.bos;
  out.eos_id = named.eos;
  out.unknown_id = named.unk;
  out.padding_id = named.pad;
  for (const std::int32_t id : named.end) {
    if (!out.eos_id) out.eos_id = id;
    if (out.eos_id != id && !out.eot_id) out.eot_id = id;
  }
  add_frame(tokenizer, out, where);
  out.chat_template = tokenizer.chat_template();
  return out;
}

}  // namespace spear
