#include "text/pretokenizer.h"

#include <unicode/normalizer2.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/json_fields.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const icu::Normalizer2& nfc() {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* instance = icu::Normalizer2::getNFCInstance(status);
  if (U_FAILURE(status) != 0) throw failed(std::string("ICU has no NFC data: ") + u_errorName(status));
  return *instance;
}

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json sequence(json first, json second) {
  return {{"type", "Sequence"}, {"pretokenizers", json::array({std::move(first), std::move(second)})}};
}

json split_on(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

}  // namespace

Normalizer::Normalizer(const json& spec, const std::string& where) {
  if (spec.is_null()) return;
  const std::string type = json_text(spec, "type", where + ": normalizer");
  if (type == "NFC") {
    nfc_ = true;
  } else if (type == "Sequence") {
    for (const json& part : json_array(spec, "normalizers", where + ": normalizer")) {
      nfc_ = Normalizer(part, where).nfc_ || nfc_;
    }
  } else {
    throw bad_input("the normalizer \"" + type + "\" is not supported (NFC is)", where,
                    "use a model with a byte-level BPE tokenizer");
  }
}

std::string Normalizer::normalize(std::string_view text) const {
  if (!nfc_) return std::string(text);
  UErrorCode status = U_ZERO_ERROR;
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  nfc().normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())), sink, nullptr, status);
  if (U_FAILURE(status) != 0) throw failed(std::string("Unicode normalization failed: ") + u_errorName(status));
  return out;
}

PreTokenizer::PreTokenizer(const json& spec, const std::string& where) {
  if (!spec.is_null()) add_steps(spec, where + ": pre_tokenizer", 0);
  if (!byte_level_) {
    throw bad_input("the pre-tokenizer has no ByteLevel step; only byte-level BPE is supported", where,
                    "use a model with a byte-level BPE tokenizer");
  }
}

void PreTokenizer::add_steps(const json& spec, const std::string& where, int depth) {
  const std::string type = json_text(spec, "type", where);
  if (byte_level_) throw bad_input("\"" + type + "\" after ByteLevel is not supported", where);
  const auto add_regex = [&](std::string_view pattern, Regex::Syntax syntax = Regex::Syntax::regex) {
    steps_.push_back({std::make_shared<const Regex>(pattern, syntax, where), false});
  };
  if (type == "Sequence") {
    if (depth > 8) throw bad_input("Sequences are nested too deeply", where);
    for (const json& part : json_array(spec, "pretokenizers", where)) add_steps(part, where, depth + 1);
  } else if (type == "Digits") {
    add_regex(json_flag(spec, "individual_digits", false, where) ? "\\p{N}" : "\\p{N}+");
  } else if (type == "Split") {
    const std::string behavior = json_text(spec, "behavior", where);
    if (behavior != "Isolated" || json_flag(spec, "invert", false, where)) {
      throw bad_input("Split with behavior \"" + behavior + "\" or \"invert\" is not supported (Isolated is)", where);
    }
    const json& pattern = json_object(spec, "pattern", where);
    const bool literal = pattern.contains("String");
    add_regex(json_text(pattern, literal ? "String" : "Regex", where),
              literal ? Regex::Syntax::literal : Regex::Syntax::regex);
  } else if (type == "ByteLevel") {
    if (json_flag(spec, "add_prefix_space", true, where)) steps_.push_back({nullptr, true});
    if (json_flag(spec, "use_regex", true, where)) add_regex(kGpt2);
    byte_level_ = true;
  } else {
    throw bad_input("the pre-tokenizer \"" + type + "\" is not supported (Sequence, Digits, Split and ByteLevel are)",
                    where, "use a model with a byte-level BPE tokenizer");
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text, std::deque<std::string>& storage) const {
  std::vector<std::string_view> pieces, next;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    next.clear();
    for (const std::string_view piece : pieces) {
      if (step.regex != nullptr) {
        step.regex->split(piece, next);
      } else {
        next.push_back(piece.starts_with(' ') ? piece : storage.emplace_back(" " + std::string(piece)));
      }
    }
    pieces.swap(next);
  }
  return pieces;
}

json pretokenizer_of_gguf(const std::string& pre, const std::string& where) {
  if (pre == "smollm") return sequence({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true));
  if (pre == "gpt-2") return byte_level(true);
  if (pre == "llama-bpe") return sequence(split_on(kLlama3), byte_level(false));
  if (pre == "qwen2") return sequence(split_on(kQwen2), byte_level(false));
  throw bad_input("the pre-tokenizer \"" + pre + "\" (tokenizer.ggml.pre) is not supported", where,
                  "use a model with one of smollm, gpt-2, llama-bpe, qwen2, or the Hugging Face directory of this one");
}

json normalizer_of_gguf(const std::string& pre) { return pre == "qwen2" ? json{{"type", "NFC"}} : json(); }

}  // namespace spear
