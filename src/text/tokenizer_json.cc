#include "text/tokenizer_json.h"

#include <utility>

#include "text/added_tokens.h"
#include "text/json_fields.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr const char* kUseByteLevel = "use a model with a byte-level BPE tokenizer";
constexpr const char* kDamaged = "fetch the model again; its tokenizer is damaged";

void refuse_model_options(const json& model, const std::string& where) {
  const json& dropout = json_member(model, "dropout", where);
  if (!dropout.is_null() && !(dropout.is_number() && dropout == 0)) {
    throw bad_input("\"dropout\" makes ids random and is not supported", where, "set it to null");
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = json_member(model, name, where);
    if (!value.is_null() && value != "")
      throw bad_input(std::string("\"") + name + "\" is not supported", where, kUseByteLevel);
  }
}

std::pair<std::string, std::string> parse_merge(const json& merge, const std::string& where) {
  std::pair<std::string, std::string> parts;
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos) parts = {text.substr(0, space), text.substr(space + 1)};
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    parts = {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  // Neither part can be empty or hold a space: in both alphabets a space is spelled otherwise.
  if (parts.first.empty() || parts.second.empty() || (parts.first + parts.second).find(' ') != std::string::npos) {
    throw bad_input("a merge is not a pair of byte-level tokens: " + merge.dump(-1, ' ', true), where, kUseByteLevel);
  }
  return parts;
}

/// Adds the ids of one post-processor to `frame`.
void add_frame(const json& spec, const std::string& where, SpecialFrame& frame, int depth) {
  if (spec.is_null()) return;
  const std::string type = json_text(spec, "type", where);
  if (type == "ByteLevel") return;
  if (type == "Sequence" && depth < 8) {
    for (const json& part : json_array(spec, "processors", where)) add_frame(part, where, frame, depth + 1);
    return;
  }
  if (type != "TemplateProcessing") {
    throw bad_input("the post-processor \"" + type + "\" is not supported (TemplateProcessing and ByteLevel are)",
                    where);
  }
  const json& special = json_object(spec, "special_tokens", where);
  bool after_text = false;
  SpecialFrame added;
  for (const json& piece : json_array(spec, "single", where)) {
    if (!json_member(piece, "Sequence", where).is_null()) {
      if (std::exchange(after_text, true)) throw bad_input("a template repeats the text", where);
      continue;
    }
    const std::string name = json_text(json_object(piece, "SpecialToken", where), "id", where);
    for (const json& id : json_array(json_object(special, name.c_str(), where), "ids", where)) {
      if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) throw json_type_error("ids", "token ids", where);
      (after_text ? added.suffix : added.prefix).push_back(id.get<std::int32_t>());
    }
  }
  if (!after_text) throw bad_input("a template has no place for the text", where);
  frame.prefix.insert(frame.prefix.begin(), added.prefix.begin(), added.prefix.end());
  frame.suffix.insert(frame.suffix.end(), added.suffix.begin(), added.suffix.end());
}

}  // namespace

namespace {

/// [[piece, log probability], ...], in the order of the ids.
Vocabulary take_pieces(json& model, const std::string& where) {
  Vocabulary result;
  result.characters = true;
  result.byte_fallback = json_flag(model, "byte_fallback", false, where);
  const json& pieces = json_array(model, "vocab", where);
  if (pieces.empty() || pieces.size() > std::size_t{kMaxTokenId})
    throw bad_input("a vocabulary of " + std::to_string(pieces.size()) + " pieces", where, kDamaged);
  const json& unk = json_member(model, "unk_id", where);
  if (!unk.is_null() && (!unk.is_number_integer() || unk < 0 || unk >= pieces.size()))
    throw json_type_error("unk_id", "the id of a piece", where);
  for (const json& piece : pieces) {
    const bool sound = piece.is_array() && piece.size() == 2 && piece[0].is_string() && piece[1].is_number();
    const auto id = static_cast<std::int32_t>(result.log_probabilities.size());
    if (!sound || !result.ids.emplace(piece[0].get<std::string>(), id).second)
      throw bad_input("piece " + std::to_string(id) + " is no pair of text and number, or is listed twice", where,
                      kDamaged);
    result.log_probabilities.push_back(piece[1].get<double>());
  }
  if (!unk.is_null()) result.unk_token = pieces[unk.get<std::size_t>()][0].get<std::string>();
  model.erase("vocab");
  return result;
}

}  // namespace

Vocabulary take_vocabulary(json& tokenizer, const std::string& file) {
  const std::string where = file + ": model";
  json_object(tokenizer, "model", file);
  json& model = tokenizer["model"];
  const json& type = json_member(model, "type", where);
  if (type == "Unigram") return take_pieces(model, where);
  if (type.is_null() ? !model.contains("merges") : type != "BPE") {
    throw bad_input("the tokenizer model " + type.dump(-1, ' ', true) + " is not supported (BPE and Unigram are)",
                    where, kUseByteLevel);
  }
  refuse_model_options(model, where);
  Vocabulary result;
  result.characters = json_flag(model, "byte_fallback", false, where);
  result.fuse_unk = json_flag(model, "fuse_unk", false, where);
  result.ignore_merges = json_flag(model, "ignore_merges", false, where);
  if (!json_member(model, "unk_token", where).is_null()) result.unk_token = json_text(model, "unk_token", where);
  const json& vocabulary = json_object(model, "vocab", where);
  result.ids.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) {
      throw bad_input("the token \"" + token + "\" has no valid id", where,
                      "fetch the model again; its tokenizer is damaged");
    }
    result.ids.emplace(token, id.get<std::int32_t>());
  }
  const json& merges = json_array(model, "merges", where);
  result.merges.reserve(merges.size());
  for (const json& merge : merges) result.merges.push_back(parse_merge(merge, where));
  model.erase("vocab");
  model.erase("merges");
  return result;
}

void put_vocabulary(json& tokenizer, const BpeModel& bpe, const std::vector<std::string>& spellings) {
  json::object_t vocabulary;
  for (const auto& [token, id] : bpe.ids()) vocabulary.emplace(token, id);
  json::array_t merges;
  for (const auto& [left, right] : bpe.merges()) {
    merges.push_back(spellings[static_cast<std::size_t>(left)] + " " + spellings[static_cast<std::size_t>(right)]);
  }
  tokenizer["model"]["vocab"] = std::move(vocabulary);
  tokenizer["model"]["merges"] = std::move(merges);
}

void put_vocabulary(json& tokenizer, const UnigramModel& unigram, const std::vector<std::string>& spellings) {
  json::array_t pieces(unigram.ids().size());
  for (const auto& [piece, id] : unigram.ids()) {
    pieces[static_cast<std::size_t>(id)] =
        json::array({spellings[static_cast<std::size_t>(id)], unigram.log_probability(id)});
  }
  tokenizer["model"]["vocab"] = std::move(pieces);
}

SpecialFrame parse_post_processor(const json& spec, const std::string& file) {
  SpecialFrame frame;
  add_frame(spec, file + ": post_processor", frame, 0);
  return frame;
}

namespace {

/// Of Metaspace, as decoder: 1 if it takes off the "▁" that it put in front.
std::size_t metaspace_prefix(const json& spec, const std::string& where) {
  if (json_text(spec, "replacement", where) != "\xE2\x96\x81")
    throw bad_input("Metaspace with another replacement than U+2581 is not supported", where);
  if (json_member(spec, "prepend_scheme", where).is_null())
    return json_flag(spec, "add_prefix_space", true, where) ? 1 : 0;
  return json_text(spec, "prepend_scheme", where) == "never" ? 0 : 1;
}

/// Replace "▁" by " ", ByteFallback, Fuse, Strip, in this order, the last one optional; or Metaspace.
std::size_t parse_character_decoder(const json& spec, const std::string& where) {
  const std::string type = json_text(spec, "type", where);
  if (type == "Metaspace") return metaspace_prefix(spec, where);
  if (type != "Sequence") throw bad_input("the decoder \"" + type + "\" is not supported with byte_fallback", where);
  std::size_t strip = 0;
  for (const json& part : json_array(spec, "decoders", where)) {
    const std::string name = json_text(part, "type", where);
    if (name == "ByteFallback" || name == "Fuse") continue;
    if (name == "Metaspace") {
      strip = metaspace_prefix(part, where);
      continue;
    }
    if (name == "Replace" && json_text(json_object(part, "pattern", where), "String", where) == "\xE2\x96\x81" &&
        json_text(part, "content", where) == " ")
      continue;
    const json& start = json_member(part, "start", where);
    if (name == "Strip" && json_text(part, "content", where) == " " && start.is_number_integer() && start >= 0 &&
        start <= 1 && json_member(part, "stop", where) == 0) {
      strip = start.get<std::size_t>();
      continue;
    }
    throw bad_input("the decoder \"" + name + "\" is not supported with these options", where);
  }
  return strip;
}

}  // namespace

std::size_t parse_decoder(const json& spec, bool characters, const std::string& file) {
  const std::string where = file + ": decoder";
  if (characters) return parse_character_decoder(spec, where);
  const std::string type = json_text(spec, "type", where);
  if (type == "ByteLevel") return 0;
  if (type == "Sequence") {
    const json& parts = json_array(spec, "decoders", where);
    if (parts.size() == 1 && json_text(parts[0], "type", where) == "ByteLevel") return 0;
  }
  throw bad_input("the decoder \"" + type + "\" is not supported (ByteLevel is)", where, kUseByteLevel);
}

std::optional<std::string> config_token(const json& config, const char* name, const std::string& where) {
  if (config.is_null()) return std::nullopt;
  const json& value = json_member(config, name, where);
  if (value.is_null()) return std::nullopt;
  if (value.is_object()) return json_text(value, "content", where);
  return json_text(config, name, where);
}

std::string config_chat_template(const json& config, const std::string& where) {
  if (config.is_null()) return {};
  const json& value = json_member(config, "chat_template", where);
  if (value.is_null()) return {};
  if (!value.is_array()) return json_text(config, "chat_template", where);
  for (const json& item : value) {
    if (json_text(item, "name", where) == "default") return json_text(item, "template", where);
  }
  return {};
}

}  // namespace spear
