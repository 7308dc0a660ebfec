// What sampling, evaluation and generation need of a model; implemented by the torch plane and by the online plane.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/config.h"

namespace spear {

/// Sequences of equal length, row-major [batch, length].
struct TokenBatch {
  std::span<const std::int32_t> tokens;
  std::int64_t batch = 1;
  std::int64_t length = 0;
};

/// Keys and values of the tokens seen so far; made by and used with one ForwardModel.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual std::int64_t length() const = 0;    ///< tokens held per sequence
  virtual std::int64_t capacity() const = 0;  ///< tokens per sequence it can hold
};

class ForwardModel {
 public:
  virtual ~ForwardModel() = default;

  virtual const ModelConfig& config() const = 0;
  virtual std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) = 0;

  /// Final normalized hidden states [batch * length, hidden_size] of every token. With a cache, the tokens follow
  /// those it holds and are appended to it; without, they start at position 0. Throws Error(usage) when a
  /// sequence exceeds the cache, Error(bad_input) on a token outside the vocabulary.
  virtual std::vector<float> hidden_states(const TokenBatch& tokens, KvCache* cache) = 0;

  /// hidden: [rows, hidden_size] -> out: [rows, vocab_size] logits.
  virtual void logits(std::span<const float> hidden, std::span<float> out) = 0;
};

}  // namespace spear
