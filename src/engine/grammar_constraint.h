// A grammar as the constraint of a request.
#pragma once

#include <memory>
#include <vector>

#include "constrain/matcher.h"
#include "engine/token_constraint.h"

namespace spear {

class GrammarConstraint : public TokenConstraint {
 public:
  /// End tokens may come where the text is complete, and must where nothing can follow. A request needs them among its
  /// stop tokens, and at least one. Throws Error(usage) when there is none.
  GrammarConstraint(std::shared_ptr<const constrain::TokenGrammar> grammar, std::vector<std::int64_t> end_tokens);

  /// Throws Error(failed) when the vocabulary has no token that goes on, or the grammar is too ambiguous.
  void mask(std::span<float> logits) override;
  void accept(std::int32_t token) override;

 private:
  constrain::Matcher matcher_;
  std::vector<std::int64_t> end_tokens_;
};

}  // namespace spear
