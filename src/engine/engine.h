// Continuous batching: requests come and go, every step computes one token for each running request and a chunk of
// the prompts that are still being read. Memory for keys and values is fixed when the engine is made.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/block_allocator.h"
#include "engine/chunk_policy.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "model/paged_model.h"

namespace spear {

struct EngineOptions {
  std::int64_t num_blocks = 0;  ///< of the KV cache, see blocks_for()
  KvCacheType kv_cache_type = KvCacheType::bf16;
  std::int64_t max_num_seqs = 32;  ///< requests that run at the same time
  bool prefix_caching = true;
  std::uint64_t hash_seed = 0;  ///< of the prefix hashes; a server takes a random one
};

/// One caller at a time; `model` and `policy` must outlive the engine, and the model must not be used by others
/// between steps. step() allocates nothing once every buffer has seen its largest step.
class Engine {
 public:
  /// Throws Error(usage) for sizes below 1, Error(out_of_resources) when the cache does not fit into memory.
  Engine(PagedModel& model, const ChunkPolicy& policy, const EngineOptions& options);

  /// Throws Error(usage) when the prompt is empty, leaves no room for a token within max_position_embeddings, or a
  /// sampling option is out of range, Error(bad_input) for tokens outside the vocabulary, and
  /// Error(out_of_resources) when the request could not run even alone in this KV cache.
  RequestId add(Request request);

  /// Ends a request; its blocks are free at once, the next step reports it. False if there is no such request.
  bool cancel(RequestId id);

  bool idle() const { return running_.empty() && waiting_.empty() && ended_.empty(); }

  /// One step. The result is valid until the next call; it is empty when a step only read parts of prompts.
  std::span<const StepOutput> step();

  EngineStats stats() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  void schedule();
  void schedule_decodes();
  std::int64_t prefill_budget() const;
  void schedule_prefills(std::int64_t& budget);
  void admit(std::int64_t& budget);
  bool has_room(const Sequence& sequence) const;
  bool schedule_chunk(Sequence& sequence, std::int64_t tokens);
  void preempt_last();
  void compute();
  void score_prompt(Sequence& sequence, std::int64_t first, std::span<const float> hidden);
  void sample(std::span<const float> hidden);
  void take_token(Sequence& sequence, std::span<const float> logits);
  void report(Sequence& sequence, std::int32_t token);
  void retire();

  PagedModel& model_;
  const ChunkPolicy& policy_;
  EngineOptions options_;
  std::unique_ptr<PagedKvCache> cache_;
  BlockAllocator blocks_;
  EngineStats totals_;
  RequestId last_id_ = 0;

  std::vector<SequencePtr> running_;   // in order of admission
  std::vector<SequencePtr> waiting_;   // next one first
  std::vector<SequencePtr> ended_;     // to be reported by the next step
  std::vector<SequencePtr> reported_;  // of the last step: its outputs refer to them
  std::vector<Sequence*> batch_;       // of the current step
  std::vector<SequenceChunk> chunks_;
  std::vector<float> last_hidden_, logits_;
  std::vector<Sequence*> sampled_;
  std::vector<StepOutput> outputs_;
};

/// Blocks that hold `tokens` tokens of one sequence.
inline std::int64_t blocks_for(std::int64_t tokens, std::int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

}  // namespace spear
