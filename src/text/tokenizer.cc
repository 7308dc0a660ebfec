#include "text/tokenizer.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "io/gguf.h"
#include "text/json_fields.h"
#include "text/tokenizer_json.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;  // positions within a word and ICU's lengths are 32 bits

std::vector<std::int32_t> eos_ids(const json& generation, const std::string& where) {
  const json& value = json_member(generation, "eos_token_id", where);
  if (value.is_null()) return {};
  std::vector<std::int32_t> ids;
  for (const json& id : value.is_array() ? value : json::array({value})) {
    if (!id.is_number_integer() || id < 0 || id > kMaxTokenId)
      throw json_type_error("eos_token_id", "token ids", where);
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::variant<BpeModel, UnigramModel> make_model(Vocabulary vocabulary, const std::string& where) {
  if (vocabulary.log_probabilities.empty()) return BpeModel(std::move(vocabulary), where);
  return UnigramModel(std::move(vocabulary), where);
}

}  // namespace

/// One call of encode: the ids so far, and where in them the ids of a word seen before are.
struct Tokenizer::EncodeState {
  std::vector<std::int32_t> ids;
  std::unordered_map<std::string_view, std::pair<std::size_t, std::size_t>> words;  // begin, count in `ids`
  std::deque<std::string> storage;                                                  // what the words view
};

Tokenizer::Tokenizer(json skeleton, Vocabulary vocabulary, const std::string& where)
    : skeleton_(std::move(skeleton)),
      characters_(vocabulary.characters),
      model_(make_model(std::move(vocabulary), where)),
      added_(json_member(skeleton_, "added_tokens", where), where),
      normalizer_(json_member(skeleton_, "normalizer", where), where),
      pretokenizer_(json_member(skeleton_, "pre_tokenizer", where), characters_, where) {
  prefix_spaces_ = parse_decoder(json_member(skeleton_, "decoder", where), characters_, where);
  SpecialFrame frame = parse_post_processor(json_member(skeleton_, "post_processor", where), where);
  prefix_ = std::move(frame.prefix);
  suffix_ = std::move(frame.suffix);
  skeleton_["truncation"] = nullptr;
  skeleton_["padding"] = nullptr;
  index_tokens(where);
}

void Tokenizer::index_tokens(const std::string& where) {
  std::size_t size = 0;
  const auto count_id = [&](std::int32_t id) { size = std::max(size, static_cast<std::size_t>(id) + 1); };
  for (const auto& [token, id] : ids()) count_id(id);
  for (const AddedToken& token : added_.tokens()) count_id(token.id);
  const std::size_t tokens = ids().size() + added_.tokens().size();
  if (size > 2 * tokens + 4096) {
    throw bad_input(
        "ids go up to " + std::to_string(size - 1) + " but there are only " + std::to_string(tokens) + " tokens", where,
        "fetch the model again; its tokenizer is damaged");
  }
  spellings_.resize(size);
  bytes_.resize(size);
  const auto place = [&](const std::string& token, std::int32_t id) {
    std::string& spelling = spellings_[static_cast<std::size_t>(id)];
    if (!spelling.empty() && spelling != token) {
      throw bad_input("\"" + spelling + "\" and \"" + token + "\" have the same id, " + std::to_string(id), where);
    }
    spelling = token;
    bytes_[static_cast<std::size_t>(id)] = bytes_of(token);
  };
  for (const auto& [token, id] : ids()) place(token, id);
  for (const AddedToken& token : added_.tokens()) {
    const auto same = ids().find(token.content);
    if (same != ids().end() && same->second != token.id) {
      throw bad_input("the added token \"" + token.content + "\" has another id in the vocabulary", where);
    }
    place(token.content, token.id);
  }
  for (const auto& ids : {prefix_, suffix_}) {
    for (const std::int32_t id : ids) {
      if (id >= vocab_size()) throw bad_input("the post-processor adds an unknown id, " + std::to_string(id), where);
    }
  }
}

/// What a token of the vocabulary stands for.
std::string Tokenizer::bytes_of(const std::string& spelling) const {
  if (!characters_) return spelling_to_bytes(spelling).value_or(spelling);
  unsigned byte = 0;
  if (spelling.size() == 6 && spelling.starts_with("<0x") && spelling.back() == '>' &&
      std::from_chars(spelling.data() + 3, spelling.data() + 5, byte, 16).ptr == spelling.data() + 5) {
    return std::string(1, static_cast<char>(byte));
  }
  std::string bytes = spelling;
  for (std::size_t at = 0; (at = bytes.find("\xE2\x96\x81", at)) != std::string::npos; ++at) bytes.replace(at, 3, " ");
  return bytes;
}

void Tokenizer::set_named(const json& config, const json& generation, const std::string& where) {
  const auto find = [&](const char* name) -> std::optional<std::int32_t> {
    const std::optional<std::string> text = config_token(config, name, where);
    return text ? token_id(*text) : std::nullopt;
  };
  named_ = {find("bos_token"), find("eos_token"), find("unk_token"), find("pad_token"), {}};
  if (!generation.is_null()) named_.end = eos_ids(generation, where);
  if (!named_.eos && !named_.end.empty()) named_.eos = named_.end.front();
  if (named_.eos) named_.end.insert(named_.end.begin(), *named_.eos);
  chat_template_ = config_chat_template(config, where);
}

Tokenizer Tokenizer::from_json(json tokenizer, const json& config, const json& generation, const std::string& where) {
  Vocabulary vocabulary = take_vocabulary(tokenizer, where);
  Tokenizer result(std::move(tokenizer), std::move(vocabulary), where);
  result.set_named(config, generation, where);
  result.finish_named(where);
  return result;
}

Tokenizer Tokenizer::from_gguf(const GgufTokenizer& gguf, const std::string& where) {
  Tokenizer result(skeleton_of_gguf(gguf, where), vocabulary_of_gguf(gguf, where), where);
  const auto id = [](const std::optional<std::int64_t>& value) -> std::optional<std::int32_t> {
    if (!value) return std::nullopt;
    return static_cast<std::int32_t>(std::clamp<std::int64_t>(*value, -1, kMaxTokenId));
  };
  result.named_ = {id(gguf.bos_id), id(gguf.eos_id), id(gguf.unknown_id), id(gguf.padding_id), {}};
  for (const auto& end : {result.named_.eos, id(gguf.eot_id)}) {
    if (end) result.named_.end.push_back(*end);
  }
  result.chat_template_ = gguf.chat_template;
  result.finish_named(where);
  return result;
}

void Tokenizer::finish_named(const std::string& where) {
  std::vector<std::int32_t>& end = named_.end;
  std::vector<std::int32_t> ids = end;
  for (const auto& id : {named_.bos, named_.eos, named_.unk, named_.pad}) {
    if (id) ids.push_back(*id);
  }
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) throw bad_input("a special token's id lies outside the vocabulary", where);
  }
  std::sort(end.begin(), end.end());
  end.erase(std::unique(end.begin(), end.end()), end.end());
  if (find_invalid_utf8(chat_template_) != std::string::npos) throw bad_input("the chat template is not UTF-8", where);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kMaxTextBytes) throw usage_error("a text of more than 1 GiB can't be encoded", {}, "split it");
  if (const std::size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
    throw bad_input("the text is not valid UTF-8 at byte " + std::to_string(at), {}, "convert it to UTF-8");
  }
  EncodeState state;
  if (options.add_special) state.ids = prefix_;
  bool first = true;
  const auto add_normalized = [&](std::string_view part, std::optional<std::int32_t> id) {
    if (id) {
      state.ids.push_back(*id);
    } else {
      encode_words(part, first, state);
    }
    first = false;
  };
  const auto add_raw = [&](std::string_view part, std::optional<std::int32_t> id) {
    if (id) {
      first = false;
      return state.ids.push_back(*id);
    }
    if (normalizer_.active()) part = state.storage.emplace_back(normalizer_.normalize(part));
    added_.split(part, true, options.parse_special, add_normalized);
  };
  added_.split(text, false, options.parse_special, add_raw);
  if (options.add_special) state.ids.insert(state.ids.end(), suffix_.begin(), suffix_.end());
  return std::move(state.ids);
}

void Tokenizer::encode_words(std::string_view text, bool first, EncodeState& state) const {
  for (const std::string_view word : pretokenizer_.split(text, first, state.storage)) {
    const std::size_t begin = state.ids.size();
    if (const auto seen = state.words.find(word); seen != state.words.end()) {
      const auto [from, count] = seen->second;
      state.ids.resize(begin + count);
      std::copy_n(state.ids.begin() + static_cast<std::ptrdiff_t>(from), count,
                  state.ids.begin() + static_cast<std::ptrdiff_t>(begin));
      continue;
    }
    std::visit([&](const auto& model) { model.encode(word, state.ids); }, model_);
    state.words.emplace(word, std::pair(begin, state.ids.size() - begin));
  }
}

const std::unordered_map<std::string, std::int32_t>& Tokenizer::ids() const {
  return std::visit([](const auto& model) -> const auto& { return model.ids(); }, model_);
}

std::vector<std::uint8_t> Tokenizer::missing_bytes() const {
  return std::visit([](const auto& model) { return model.missing_bytes(); }, model_);
}

const std::string& Tokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw usage_error("token id " + std::to_string(id) + " is outside the vocabulary of " +
                      std::to_string(vocab_size()));
  }
  return bytes_[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  text += decoder.finish();
  if (prefix_spaces_ > 0 && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::string StreamDecoder::push(std::int32_t id) {
  const std::string& bytes = tokenizer_.token_bytes(id);
  return skip_special_ && tokenizer_.is_special(id) ? std::string() : stream_.push(bytes);
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view spelling) const {
  for (const AddedToken& token : added_.tokens()) {
    if (token.content == spelling) return token.id;
  }
  const auto found = ids().find(std::string(spelling));
  return found == ids().end() ? std::nullopt : std::optional(found->second);
}

std::map<std::string, std::string> Tokenizer::template_tokens() const {
  std::map<std::string, std::string> result;
  const auto add = [&](const char* name, const std::optional<std::int32_t>& id) {
    if (id) result[name] = spellings_[static_cast<std::size_t>(*id)];
  };
  add("bos_token", named_.bos);
  add("eos_token", named_.eos);
  add("unk_token", named_.unk);
  add("pad_token", named_.pad);
  return result;
}

std::string Tokenizer::to_tokenizer_json() const {
  json tokenizer = skeleton_;
  std::visit([&](const auto& model) { put_vocabulary(tokenizer, model, spellings_); }, model_);
  return tokenizer.dump(1);
}

std::string Tokenizer::to_tokenizer_config_json() const {
  json config = template_tokens();
  if (!chat_template_.empty()) config["chat_template"] = chat_template_;
  config["clean_up_tokenization_spaces"] = false;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  return config.dump(2);
}

}  // namespace spear
