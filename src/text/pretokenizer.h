// What happens to text before BPE: Unicode normalization, then division into words by regular expressions.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace spear {

/// tokenizer.json's "normalizer": none, NFC, NFD, NFKC, NFKD, Prepend, Replace (of a string), Lowercase, or a Sequence
/// of these.
class Normalizer {
 public:
  Normalizer() = default;
  /// Throws Error(bad_input) naming an unsupported normalizer.
  Normalizer(const nlohmann::json& spec, const std::string& where);

  bool active() const { return !steps_.empty(); }
  /// `text` must be valid UTF-8.
  std::string normalize(std::string_view text) const;

 private:
  struct Step {
    enum class Kind { nfc, nfd, nfkc, nfkd, lowercase, prepend, replace } kind;
    std::string from, to;
  };
  void add_steps(const nlohmann::json& spec, const std::string& where, int depth);

  std::vector<Step> steps_;
};

/// tokenizer.json's "pre_tokenizer": Sequence, Digits, Split (Isolated) and, at the end, ByteLevel; or, where symbols
/// are characters, nothing, Metaspace, or Split on a string (MergedWithPrevious).
class PreTokenizer {
 public:
  PreTokenizer() = default;
  /// Throws Error(bad_input) naming an unsupported step or option.
  PreTokenizer(const nlohmann::json& spec, bool characters, const std::string& where);

  /// The words of `text` (valid UTF-8), not empty, in order; `first`: it is the beginning of what is encoded. They
  /// view `text`, or strings that are put into `storage`.
  std::vector<std::string_view> split(std::string_view text, bool first, std::deque<std::string>& storage) const;

 private:
  struct Step {
    std::shared_ptr<const Regex> regex;  // none: the step only adds the space
    bool add_prefix_space = false;
    std::string after = {};               // words end behind this string
    bool metaspace = false, cut = false;  // spaces become "▁"; words begin at each
    enum class Prepend { never, first, always } prepend = Prepend::never;
  };
  static void metaspace(const Step& step, std::string_view piece, bool first, std::deque<std::string>& storage,
                        std::vector<std::string_view>& out);
  void add_character_steps(const nlohmann::json& spec, const std::string& where, int depth);
  void add_steps(const nlohmann::json& spec, const std::string& where, int depth);

  std::vector<Step> steps_;
  bool byte_level_ = false;  // a ByteLevel step has been seen
};

/// The tokenizer.json "pre_tokenizer" and "normalizer" that belong to a GGUF file's tokenizer.ggml.pre. Throws
/// Error(bad_input) naming an unknown one and those that are known.
nlohmann::json pretokenizer_of_gguf(const std::string& pre, const std::string& where);
nlohmann::json normalizer_of_gguf(const std::string& pre);

}  // namespace spear
