// Continuous batching: requests come and go, every step computes one token for each running request and a chunk of
// the prompts that are still being read. Memory for keys and values is fixed when the engine is made.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/block_allocator.h"
#include "engine/chunk_policy.h"
#include "engine/request.h"
#include "engine/scheduler/scheduler.h"
#include "engine/sequence.h"
#include "model/paged_model.h"

namespace spear {

struct EngineOptions {
  std::int64_t num_blocks = 0;  ///< of the KV cache, see blocks_for()
  KvCacheType kv_cache_type = KvCacheType::bf16;
  std::int64_t max_num_seqs = 32;  ///< requests that run at the same time
  bool prefix_caching = true;
  std::uint64_t hash_seed = 0;         ///< of the prefix hashes; a server takes a random one
  SchedulerOptions scheduler = {};     ///< its max_num_seqs is the one above
  std::function<double()> clock = {};  ///< seconds; empty: std::chrono::steady_clock
};

/// One caller at a time; `model` and `policy` or `latency` must outlive the engine, and the model must not be used by
/// others between steps. step() allocates nothing once every buffer has seen its largest step.
class Engine final : private KvSpace {
 public:
  /// Throws Error(usage) for sizes below 1, Error(out_of_resources) when the cache does not fit into memory.
  Engine(PagedModel& model, const ChunkPolicy& policy, const EngineOptions& options);
  /// The same, keeping what requests were promised (docs/scheduler.md).
  Engine(PagedModel& model, LatencyModel& latency, const EngineOptions& options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Throws Error(usage) when the prompt is empty, leaves no room for a token within max_position_embeddings, or a
  /// sampling option is out of range, Error(bad_input) for tokens outside the vocabulary, and
  /// Error(out_of_resources) when the request could not run even alone in this KV cache.
  RequestId add(Request request);

  /// Ends a request; its blocks are free at once, the next step reports it. False if there is no such request.
  bool cancel(RequestId id);

  bool idle() const { return sequences_.empty() && ended_.empty(); }

  /// One step. The result is valid until the next call; it is empty when a step only read parts of prompts.
  std::span<const StepOutput> step();

  EngineStats stats() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  Engine(PagedModel& model, const EngineOptions& options, const ChunkPolicy* policy, LatencyModel* latency);

  std::int64_t free_blocks() const override { return blocks_.free_blocks(); }
  std::int64_t blocks_missing(const ScheduledRequest& request, std::int64_t tokens) const override;
  std::int64_t capacity(const ScheduledRequest& request) const override;
  bool reserve(ScheduledRequest& request, std::int64_t tokens) override;
  void match_prefix(ScheduledRequest& request) override;
  void drop(ScheduledRequest& request) override;

  double now() const;
  std::unique_ptr<Sequence> take(const ScheduledRequest& request);
  void refuse(std::span<ScheduledRequest* const> requests);
  void begin(std::span<ScheduledRequest* const> batch);
  void compute(const StepPlan& plan, double start);
  void score_prompt(Sequence& sequence, std::int64_t first, std::span<const float> hidden);
  void sample(std::span<const float> hidden);
  void take_token(Sequence& sequence, std::span<const float> logits);
  void report(Sequence& sequence, std::int32_t token);
  void retire();

  PagedModel& model_;
  EngineOptions options_;
  std::unique_ptr<PagedKvCache> cache_;
  BlockAllocator blocks_;
  EngineStats totals_;
  RequestId last_id_ = 0;

  std::vector<SequencePtr> sequences_;  // those that run or wait
  std::vector<SequencePtr> ended_;      // to be reported by the next step
  std::vector<SequencePtr> reported_;   // of the last step: its outputs refer to them
  std::vector<SequenceChunk> chunks_;
  std::vector<float> last_hidden_, logits_;
  std::vector<Sequence*> sampled_;
  std::vector<StepOutput> outputs_;
  double model_density_ = -1;  // of the last step; none yet
  Scheduler scheduler_;
};

/// Blocks that hold `tokens` tokens of one sequence.
inline std::int64_t blocks_for(std::int64_t tokens, std::int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

}  // namespace spear
