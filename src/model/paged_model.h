// What the engine needs of a model: one step over parts of many sequences, whose keys and values live in blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "model/config.h"

namespace spear {

/// How keys and values are kept; int8 has a scale per token and head.
enum class KvCacheType { f32, bf16, int8 };

/// "f32", "bf16", "int8".
const char* name(KvCacheType type);

/// Consecutive tokens of one sequence in a step: a chunk of its prompt, or the one token of a decode.
struct SequenceChunk {
  std::span<const std::int32_t> tokens;
  std::int64_t first_position = 0;  ///< of tokens[0]; what comes before it is in the blocks already
  /// Position p is kept in slot p % block_size of block block_table[p / block_size]; covers the last token.
  std::span<const std::int32_t> block_table;
};

/// Keys and values of all layers in num_blocks() blocks of block_size() tokens; its memory is fixed when it is made.
class PagedKvCache {
 public:
  virtual ~PagedKvCache() = default;
  virtual std::int64_t block_size() const = 0;
  virtual std::int64_t num_blocks() const = 0;
  virtual std::int64_t bytes() const = 0;
};

class PagedModel {
 public:
  virtual ~PagedModel() = default;

  virtual const ModelConfig& config() const = 0;

  virtual std::int64_t block_size() const = 0;                   ///< tokens per block of its caches
  virtual std::int64_t block_bytes(KvCacheType type) const = 0;  ///< of one block, all layers and heads

  /// Throws Error(out_of_resources) when the machine's memory cannot hold it.
  virtual std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t num_blocks, KvCacheType type) = 0;

  /// Final normalized hidden states [rows, hidden_size] of all tokens, chunk after chunk, valid until the next call;
  /// keys and values of the tokens are written into the chunks' blocks. A block that is written belongs to one chunk
  /// only. Throws Error(usage) when a chunk is empty or its block table does not cover it, Error(bad_input) on a
  /// token outside the vocabulary.
  virtual std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) = 0;

  /// From the next step on: the part of the compensators that is applied, most worthwhile first. Cheap.
  virtual void set_compensator_density(double /*density*/) {}

  /// hidden: [rows, hidden_size] -> out: [rows, vocab_size] logits.
  virtual void logits(std::span<const float> hidden, std::span<float> out) = 0;
};

}  // namespace spear
