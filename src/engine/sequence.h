// A request inside the engine: its tokens, and the blocks that hold their keys and values.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/block_allocator.h"
#include "engine/request.h"
#include "engine/scheduler/scheduler.h"

namespace spear {

class Sequence : public ScheduledRequest {
 public:
  /// Takes all the memory it will need: `limit` is the most tokens it can ever have, prompt included.
  Sequence(RequestId id, Request request, std::int64_t limit, std::int64_t vocab_size, std::int64_t block_size);

  const std::int64_t limit;
  Sampler sampler;
  double density = 1;  ///< the lowest part of the compensators that it was computed with
  std::optional<FinishReason> finished;
  std::optional<Error> error;
  std::int64_t cached_tokens = 0;                          ///< found in the prefix cache when it was first admitted
  std::chrono::steady_clock::time_point admitted = {};     ///< first; the epoch: not yet
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;  ///< of prompt tokens 1, 2, ..., if they are wanted

  std::int64_t size() const { return length; }
  std::int64_t prompt_tokens() const { return static_cast<std::int64_t>(request_.prompt.size()); }
  const Request& request() const { return request_; }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::span<const std::int32_t> block_table() const { return block_table_; }

  /// Blocks that are still needed to hold `tokens` tokens.
  std::int64_t blocks_missing(std::int64_t tokens) const;

  /// Takes blocks until `tokens` tokens fit; false if there are not enough, and then it keeps what it got.
  bool reserve(BlockAllocator& blocks, std::int64_t tokens);

  /// Takes the blocks of the longest known prefix; one token at least stays to be computed. Needs an empty table.
  void match_prefix(BlockAllocator& blocks);

  /// Counts the step's tokens as computed and makes the blocks that they filled known.
  void commit(BlockAllocator& blocks, bool publish);

  /// Gives all blocks back; everything has to be computed again.
  void drop(BlockAllocator& blocks);

  /// The sampled token: part of the output, or the end of it.
  void append(std::int32_t token);

 private:
  /// Where prefixes begin: keys and values of other compensators are other ones.
  std::uint64_t root(const BlockAllocator& blocks) const;

  Request request_;
  std::int64_t block_size_;
  std::vector<std::int32_t> tokens_;       // prompt and output
  std::vector<std::int32_t> block_table_;  // in order of positions
  std::int64_t published_ = 0;             // blocks whose hash is in hash_
  std::uint64_t hash_ = 0;                 // of the published prefix
};

}  // namespace spear
