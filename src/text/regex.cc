#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <new>

#include "base/error.h"
#include "text/utf8.h"

namespace spear {
namespace {

// White space as Oniguruma has it. PCRE2's \s also holds U+180E, which left that class in Unicode 6.3.
constexpr std::string_view kSpace =
    "\\t-\\r \\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr std::array<std::string_view, 8> kGroups = {"(?:", "(?i:", "(?>", "(?=", "(?!", "(?<=", "(?<!", "("};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == '^' || c == '$') {
        refuse("an anchor");
      } else if (pattern_.substr(at_, 2) == "}+" || pattern_.substr(at_, 2) == "}?" ||
                 pattern_.substr(at_, 2) == "{,") {
        refuse("an unusual counted repetition");
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& construct) const {
    throw bad_input("the pre-tokenizer's regular expression has " + construct + " at position " + std::to_string(at_) +
                        ", which SPEAR can't reproduce: " + std::string(pattern_),
                    where_, "use a model whose pre-tokenizer avoids it");
  }

  void copy(std::size_t length) {
    out_ += pattern_.substr(at_, length);
    at_ += length;
  }

  void replace(std::size_t length, std::string_view text) {
    out_ += text;
    at_ += length;
  }

  void group() {
    for (const std::string_view opening : kGroups) {
      if (!pattern_.substr(at_).starts_with(opening)) continue;
      if (opening == "(" && (pattern_.substr(at_).starts_with("(?") || pattern_.substr(at_).starts_with("(*"))) break;
      return copy(opening.size());
    }
    refuse("an unusual group");
  }

  void escape(bool in_class) {
    if (at_ + 1 == pattern_.size()) refuse("a lone backslash");
    const char c = pattern_[at_ + 1];
    if (c == 's') return replace(2, in_class ? std::string(kSpace) : "[" + std::string(kSpace) + "]");
    if (c == 'S' && !in_class) return replace(2, "[^" + std::string(kSpace) + "]");
    if (c == 'p' || c == 'P' || c == 'x') {
      const std::size_t end = pattern_.find('}', at_);
      if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || end == std::string_view::npos) {
        refuse(std::string("a \\") + c + " without braces");
      }
      return copy(end + 1 - at_);
    }
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c & 0x80) != 0;
    if (letter && std::string_view("rntfvdD").find(c) == std::string_view::npos)
      refuse(std::string("the escape \\") + c);
    if (c == 'v') return replace(2, "\\x{0B}");  // PCRE2 means any vertical space by it
    copy(2);
  }

  void character_class() {
    copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == '^') copy(1);
    if (at_ < pattern_.size() && pattern_[at_] == ']') refuse("a class that begins with ]");
    while (at_ < pattern_.size() && pattern_[at_] != ']') {
      if (pattern_[at_] == '\\') {
        escape(true);
      } else if (pattern_[at_] == '[') {
        refuse("a class within a class");
      } else if (pattern_.substr(at_, 2) == "&&") {
        refuse("a class intersection");
      } else {
        copy(1);
      }
    }
    if (at_ == pattern_.size()) refuse("an unfinished class");
    copy(1);
  }

  std::string_view pattern_;
  const std::string& where_;
  std::size_t at_ = 0;
  std::string out_;
};

/// What PCRE2 needs for matching, per thread: limits and a stack for compiled code.
class MatchContext {
 public:
  MatchContext()
      : context_(pcre2_match_context_create(nullptr)), stack_(pcre2_jit_stack_create(32 << 10, 1 << 20, nullptr)) {
    if (context_ == nullptr) throw std::bad_alloc();
    pcre2_set_heap_limit(context_, 256 << 10);  // KiB
    if (stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  ~MatchContext() {
    pcre2_match_context_free(context_);
    if (stack_ != nullptr) pcre2_jit_stack_free(stack_);
  }
  MatchContext(const MatchContext&) = delete;
  MatchContext& operator=(const MatchContext&) = delete;

  /// Sane patterns need a few steps per byte and match.
  pcre2_match_context* for_text(std::size_t bytes) {
    pcre2_set_match_limit(context_,
                          static_cast<std::uint32_t>(std::min<std::size_t>(2'000'000 + 16 * bytes, UINT32_MAX)));
    return context_;
  }

 private:
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;
};

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

}  // namespace

std::string translate_regex(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

Regex::Regex(std::string_view pattern, Syntax syntax, const std::string& where) : pattern_(pattern) {
  if (pattern.empty()) throw bad_input("a regular expression is empty", where);
  if (find_invalid_utf8(pattern) != std::string_view::npos) throw bad_input("a regular expression is not UTF-8", where);
  const std::string translated = syntax == Syntax::literal ? pattern_ : translate_regex(pattern, where);
  std::uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK;
  options |= syntax == Syntax::literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) throw std::bad_alloc();
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_max_pattern_length(context, 1 << 20);
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                   &offset, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    throw bad_input("the pre-tokenizer's regular expression is malformed near position " + std::to_string(offset) +
                        " (" + pcre2_message(error) + "): " + translated,
                    where);
  }
  code_ = std::shared_ptr<const void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, the interpreter matches
}

void Regex::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  thread_local MatchContext thread_context;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  pcre2_match_context* context = thread_context.for_text(text.size());
  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(pcre2_match_data_create(1, nullptr),
                                                                            pcre2_match_data_free);
  if (data == nullptr) throw std::bad_alloc();
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto emit = [&](std::size_t begin, std::size_t end) {
    if (begin < end) pieces.push_back(text.substr(begin, end - begin));
  };
  std::size_t done = 0, start = 0;
  while (start < text.size()) {
    int rc = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, data.get(), context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(), context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      throw bad_input("the pre-tokenizer gave up on a text of " + std::to_string(text.size()) + " bytes at byte " +
                          std::to_string(start) + " (" + pcre2_message(rc) + "): " + pattern_,
                      {}, "split the text, or use a model with a simpler pre-tokenizer");
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(data.get());
    emit(done, span[0]);
    emit(span[0], span[1]);
    done = span[1];
    start =
        span[1] > span[0] ? span[1] : span[1] + (span[1] < text.size() ? read_utf8(text.substr(span[1])).length : 1);
  }
  emit(done, text.size());
}

}  // namespace spear
