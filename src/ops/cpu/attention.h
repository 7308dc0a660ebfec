// Rotary embedding and causal grouped-query attention over paged keys and values, for a step that mixes prefill
// chunks and decodes. The work is planned once per step and the plan serves every layer.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "model/config.h"
#include "model/paged_model.h"
#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/paged_kv_cache.h"

namespace spear {

/// Queries of one chunk against a range of segments of one key/value head: what a thread draws.
struct AttentionItem {
  std::int32_t chunk, kv_head;
  std::int32_t first_query, queries;  ///< positions within the chunk
  std::int32_t first_segment, segments;
  std::int32_t split;  ///< index of the split whose parts are merged by whoever finishes last; -1: not split
  std::int64_t cost;
};

/// Queries whose segments are shared out between threads.
struct AttentionSplit {
  std::int32_t parts = 0, segments = 0;
  std::int64_t partials = 0;  ///< offset of [segments][rows * (2 + width)] floats
};

/// Which rows stand at which positions, and who attends to what. Keeps its memory from step to step.
class AttentionPlan {
 public:
  explicit AttentionPlan(const ModelConfig& config);

  /// The chunks are copied, the spans they hold are not. `threads` bounds the number of items, never the result.
  void build(std::span<const SequenceChunk> chunks, int threads);

  std::int64_t rows() const { return static_cast<std::int64_t>(row_chunk_.size()); }
  std::span<const SequenceChunk> chunks() const { return chunks_; }

 private:
  friend class AttentionRun;
  void add_items(std::int32_t chunk, std::int64_t target_cost);
  void rotations();

  std::int64_t heads_, kv_heads_, head_dim_, group_;
  std::int64_t tile_positions_;            ///< query positions per item
  std::vector<double> inverse_frequency_;  ///< [head_dim / 2]
  std::vector<SequenceChunk> chunks_;
  std::vector<std::int64_t> first_row_;  ///< by chunk
  std::vector<std::int32_t> row_chunk_;  ///< by row
  std::vector<float> cos_, sin_;         ///< [rows, head_dim / 2]
  std::vector<AttentionItem> items_;     ///< most expensive first
  std::vector<AttentionSplit> splits_;
  std::int64_t partial_floats_ = 0;
  std::int64_t total_cost_ = 0;
  std::vector<float> partials_;
  std::unique_ptr<std::atomic<std::int32_t>[]> pending_;  ///< by split: parts not done yet
  std::size_t pending_size_ = 0;
};

/// q: [rows, heads * head_dim], replaced by the output; k, v: [rows, kv_heads * head_dim], k is rotated in place; both
/// are written into the blocks of `cache`. Softmax scale 1 / sqrt(head_dim). Each row's result is bit-equal for every
/// way to cut its sequence into chunks, whatever else is in the step, and any number of threads.
void attend(ThreadPool& pool, const AttentionKernels& kernels, AttentionPlan& plan, std::int64_t layer, float* q,
            float* k, const float* v, CpuPagedKvCache& cache);

}  // namespace spear
