#include "engine/grammar_constraint.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace spear {

GrammarConstraint::GrammarConstraint(std::shared_ptr<const constrain::TokenGrammar> grammar,
                                     std::vector<std::int64_t> end_tokens)
    : matcher_(std::move(grammar)), end_tokens_(std::move(end_tokens)) {
  if (end_tokens_.empty())
    throw usage_error("a constrained output needs an end token", "response_format", "do not ignore the end tokens");
}

void GrammarConstraint::mask(std::span<float> logits) {
  const constrain::TokenBits& bits = matcher_.allowed();
  if (std::all_of(bits.begin(), bits.end(), [](std::uint64_t word) { return word == 0; }) && !matcher_.complete()) {
    throw failed("the vocabulary has no token for what the schema asks for next", "response_format",
                 "leave out names and values that this model cannot write");
  }
  std::vector<std::pair<std::size_t, float>> ends;
  if (matcher_.complete()) {
    for (const std::int64_t token : end_tokens_) {
      if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) continue;
      // A bias of -infinity must not take the only way out.
      const float logit = logits[static_cast<std::size_t>(token)];
      ends.emplace_back(static_cast<std::size_t>(token), std::isinf(logit) ? -1e30F : logit);
    }
  }
  constrain::mask_logits(bits, logits);
  for (const auto& [token, logit] : ends) logits[token] = logit;
}

void GrammarConstraint::accept(std::int32_t token) {
  if (std::find(end_tokens_.begin(), end_tokens_.end(), token) != end_tokens_.end()) return;
  if (!matcher_.accept(token)) throw failed("a token was taken that the schema does not allow", "response_format");
}

}  // namespace spear
