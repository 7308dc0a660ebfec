#include "text/pretokenizer.h"

#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/json_fields.h"
#include "text/utf8.h"

namespace spear {
namespace {

using nlohmann::json;

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // "▁"

using IcuForm = const icu::Normalizer2* (*)(UErrorCode&);

std::string icu_normalize(IcuForm form, std::string_view text) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* instance = form(status);
  if (U_FAILURE(status) != 0)
    throw failed(std::string("ICU has no data for this normalization: ") + u_errorName(status));
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  instance->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())), sink, nullptr,
                          status);
  if (U_FAILURE(status) != 0) throw failed(std::string("Unicode normalization failed: ") + u_errorName(status));
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  // Character by character, as `tokenizers` does: no context, so that a final sigma is no special case.
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = read_utf8(text.substr(i)).length;
    icu::UnicodeString one =
        icu::UnicodeString::fromUTF8(icu::StringPiece(text.data() + i, static_cast<std::int32_t>(length)));
    one.toLower(icu::Locale::getRoot()).toUTF8String(out);
    i += length;
  }
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t found = std::min(text.find(from, i), text.size());
    out += text.substr(i, found - i);
    if (found < text.size()) out += to;
    i = found + from.size();
  }
  return out;
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
  if (!spec.is_null()) add_steps(spec, where + ": normalizer", 0);
}

void Normalizer::add_steps(const json& spec, const std::string& where, int depth) {
  static constexpr std::pair<std::string_view, Step::Kind> kPlain[] = {{"NFC", Step::Kind::nfc},
                                                                       {"NFD", Step::Kind::nfd},
                                                                       {"NFKC", Step::Kind::nfkc},
                                                                       {"NFKD", Step::Kind::nfkd},
                                                                       {"Lowercase", Step::Kind::lowercase}};
  const std::string type = json_text(spec, "type", where);
  for (const auto& [name, kind] : kPlain) {
    if (type == name) {
      steps_.push_back({kind, {}, {}});
      return;
    }
  }
  if (type == "Sequence") {
    if (depth > 8) throw bad_input("Sequences are nested too deeply", where);
    for (const json& part : json_array(spec, "normalizers", where)) add_steps(part, where, depth + 1);
  } else if (type == "Prepend") {
    steps_.push_back({Step::Kind::prepend, {}, json_text(spec, "prepend", where)});
  } else if (type == "Replace" && json_object(spec, "pattern", where).contains("String")) {
    steps_.push_back({Step::Kind::replace, json_text(json_object(spec, "pattern", where), "String", where),
                      json_text(spec, "content", where)});
    if (steps_.back().from.empty()) throw bad_input("Replace of an empty string", where);
  } else {
    throw bad_input("the normalizer \"" + type +
                        "\" is not supported (NFC, NFD, NFKC, NFKD, Lowercase, Prepend and Replace of a string are)",
                    where, "use a model with another tokenizer");
  }
}

std::string Normalizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::nfc:
        out = icu_normalize(icu::Normalizer2::getNFCInstance, out);
        break;
      case Step::Kind::nfd:
        out = icu_normalize(icu::Normalizer2::getNFDInstance, out);
        break;
      case Step::Kind::nfkc:
        out = icu_normalize(icu::Normalizer2::getNFKCInstance, out);
        break;
      case Step::Kind::nfkd:
        out = icu_normalize(icu::Normalizer2::getNFKDInstance, out);
        break;
      case Step::Kind::lowercase:
        out = lowercase(out);
        break;
      case Step::Kind::prepend:
        if (!out.empty()) out.insert(0, step.to);
        break;
      case Step::Kind::replace:
        out = replace_all(out, step.from, step.to);
        break;
    }
  }
  return out;
}

PreTokenizer::PreTokenizer(const json& spec, bool characters, const std::string& where) {
  if (characters) {
    if (!spec.is_null()) add_character_steps(spec, where + ": pre_tokenizer", 0);
    return;
  }
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

void PreTokenizer::add_character_steps(const json& spec, const std::string& where, int depth) {
  const std::string type = json_text(spec, "type", where);
  Step step;
  if (type == "Sequence") {
    if (depth > 8) throw bad_input("Sequences are nested too deeply", where);
    for (const json& part : json_array(spec, "pretokenizers", where)) add_character_steps(part, where, depth + 1);
    return;
  }
  if (type == "Metaspace") {
    if (json_text(spec, "replacement", where) != kMetaspace)
      throw bad_input("Metaspace with another replacement than U+2581 is not supported", where);
    step.metaspace = true;
    step.cut = json_flag(spec, "split", true, where);
    // Older files say add_prefix_space, which meant every stretch.
    const bool old = json_member(spec, "prepend_scheme", where).is_null();
    const std::string scheme = old ? (json_flag(spec, "add_prefix_space", true, where) ? "always" : "never")
                                   : json_text(spec, "prepend_scheme", where);
    if (scheme != "always" && scheme != "first" && scheme != "never")
      throw bad_input("the prepend_scheme \"" + scheme + "\" is not supported", where);
    step.prepend = scheme == "always"  ? Step::Prepend::always
                   : scheme == "first" ? Step::Prepend::first
                                       : Step::Prepend::never;
  } else if (type == "Split" && json_text(spec, "behavior", where) == "MergedWithPrevious" &&
             !json_flag(spec, "invert", false, where) && json_object(spec, "pattern", where).contains("String")) {
    step.after = json_text(json_object(spec, "pattern", where), "String", where);
    if (step.after.empty()) throw bad_input("Split on an empty string", where);
  } else {
    throw bad_input(
        "the pre-tokenizer \"" + type +
            "\" is not supported beside byte_fallback (Metaspace and Split on a string, MergedWithPrevious, are)",
        where, "use a model with another tokenizer");
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::metaspace(const Step& step, std::string_view piece, bool first, std::deque<std::string>& storage,
                             std::vector<std::string_view>& out) {
  std::string text = replace_all(piece, " ", kMetaspace);
  const bool prepend = step.prepend == Step::Prepend::always || (step.prepend == Step::Prepend::first && first);
  if (prepend && !text.starts_with(kMetaspace)) text.insert(0, kMetaspace);
  const std::string_view whole = storage.emplace_back(std::move(text));
  if (!step.cut) return out.push_back(whole);
  for (std::size_t begin = 0; begin < whole.size();) {
    const std::size_t end = std::min(whole.find(kMetaspace, begin + 1), whole.size());
    out.push_back(whole.substr(begin, end - begin));
    begin = end;
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text, bool first,
                                                  std::deque<std::string>& storage) const {
  std::vector<std::string_view> pieces, next;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    next.clear();
    for (const std::string_view piece : pieces) {
      if (step.metaspace) {
        metaspace(step, piece, first && piece.data() == pieces.front().data(), storage, next);
      } else if (!step.after.empty()) {
        for (std::size_t begin = 0; begin < piece.size();) {
          const std::size_t found = piece.find(step.after, begin);
          const std::size_t end = found == std::string_view::npos ? piece.size() : found + step.after.size();
          next.push_back(piece.substr(begin, end - begin));
          begin = end;
        }
      } else if (step.regex != nullptr) {
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
