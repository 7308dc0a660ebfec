// What a request's output may be: asked before every token, told of every token.
#pragma once

#include <cstdint>
#include <span>

namespace spear {

class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  /// Sets the logit of every token that may not come next to -infinity. End tokens may come only where the text is
  /// complete. At least one token must stay.
  virtual void mask(std::span<float> logits) = 0;

  /// The token that was taken, one that mask() left.
  virtual void accept(std::int32_t token) = 0;
};

}  // namespace spear
