#include <fmt/format.h>

#include "base/error.h"
#include "io/gguf.h"

namespace spear {
namespace {

/// A token id that must lie inside the vocabulary. 0xffffffff is how some writers say "none".
std::optional<std::int64_t> token_id(const GgufFile& file, const std::string& key, std::size_t vocabulary) {
  const auto id = file.integer(key);
  if (!id || *id == 0xffffffffLL || *id == -1) return std::nullopt;
  if (*id < 0 || static_cast<std::uint64_t>(*id) >= vocabulary) {
    throw bad_input(fmt::format("{} = {} lies outside the vocabulary of {}", key, *id, vocabulary), file.where(),
                    "the file is damaged");
  }
  return id;
}

}  // namespace

GgufTokenizer read_gguf_tokenizer(const GgufFile& file) {
  const auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  const auto model = file.text(key("model"));
  auto tokens = file.texts(key("tokens"));
  if (!model || !tokens || tokens->empty()) {
    throw bad_input("the file carries no tokenizer", file.where(), "use a GGUF file made from a complete model");
  }
  GgufTokenizer result;
  result.model = *model;
  result.pre = file.text(key("pre")).value_or("");
  result.tokens = std::move(*tokens);
  for (const std::int64_t type : file.integers(key("token_type")).value_or(std::vector<std::int64_t>{})) {
    result.token_types.push_back(type >= 1 && type <= 6 ? static_cast<std::int32_t>(type) : 1);
  }
  for (const double score : file.reals(key("scores")).value_or(std::vector<double>{})) {
    result.scores.push_back(static_cast<float>(score));
  }
  result.merges = file.texts(key("merges")).value_or(std::vector<std::string>{});
  const std::size_t size = result.tokens.size();
  if (result.token_types.empty()) result.token_types.assign(size, 1);
  if (result.token_types.size() != size || (!result.scores.empty() && result.scores.size() != size)) {
    throw bad_input(
        fmt::format("{} tokens, {} token types, {} scores", size, result.token_types.size(), result.scores.size()),
        file.where(), "the file is damaged");
  }
  result.bos_id = token_id(file, key("bos_token_id"), size);
  result.eos_id = token_id(file, key("eos_token_id"), size);
  result.eot_id = token_id(file, key("eot_token_id"), size);
  result.unknown_id = token_id(file, key("unknown_token_id"), size);
  result.padding_id = token_id(file, key("padding_token_id"), size);
  result.add_bos = file.boolean(key("add_bos_token"));
  result.add_eos = file.boolean(key("add_eos_token"));
  result.add_space_prefix = file.boolean(key("add_space_prefix"));
  result.chat_template = file.text("tokenizer.chat_template").value_or("");
  return result;
}

}  // namespace spear
