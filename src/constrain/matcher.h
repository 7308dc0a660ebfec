// Follows one output through a grammar, token by token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "constrain/grammar.h"
#include "constrain/machine.h"
#include "constrain/token_masks.h"
#include "constrain/vocabulary.h"

namespace spear::constrain {

/// A grammar made ready for a vocabulary. Immutable but for what it remembers; may be shared between threads.
struct TokenGrammar {
  TokenGrammar(Grammar rules, std::shared_ptr<const Vocabulary> tokens)
      : grammar(std::move(rules)), vocabulary(std::move(tokens)), masks(grammar, *vocabulary) {}

  const Grammar grammar;
  const std::shared_ptr<const Vocabulary> vocabulary;
  mutable TokenMasks masks;
};

/// Throws Error(failed) where a grammar turns out to be too ambiguous to follow.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const TokenGrammar> grammar);

  /// The tokens that may come next, end tokens left out. Valid until the next call.
  const TokenBits& allowed();
  /// False when the token, or a byte of the text, cannot come here; nothing has changed then.
  bool accept(std::int32_t token);
  bool accept_text(std::string_view bytes);
  /// The text may end here.
  bool complete() const { return machine_.is_complete(set_); }
  /// It must end here.
  bool over() const { return machine_.is_over(set_); }

 private:
  void add_exits(StackId stack, std::span<const std::uint32_t> exits);

  std::shared_ptr<const TokenGrammar> grammar_;
  Machine machine_;
  SetId set_;
  SetId masked_ = ~SetId{0};  // bits_ are of this set
  TokenBits bits_;
  std::vector<SetId> by_depth_;
};

/// -infinity for every token without a bit, and for all behind the bits.
void mask_logits(const TokenBits& bits, std::span<float> logits);

}  // namespace spear::constrain
