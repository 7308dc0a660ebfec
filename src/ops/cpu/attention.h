// Rotary embedding and causal grouped-query attention over paged keys and values, for a step that mixes prefill
// chunks and decodes. The work is planned once per step and the plan serves every layer.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
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
  std::int32_t parts = 0, first_segment = 0, segments = 0;
  std::int64_t partials = 0;  ///< offset of [segments][rows * (2 + width)] floats
};

/// What layers of one kind, local or not, do with a step. Keeps its memory from step to step.
struct AttentionSchedule {
  std::int64_t window = 0;                ///< tokens that a token sees, itself included; 0: all before it
  std::vector<double> inverse_frequency;  ///< [head_dim / 2]
  std::vector<float> cos, sin;            ///< [rows, head_dim / 2]
  std::vector<AttentionItem> items;       ///< most expensive first
  std::vector<AttentionSplit> splits;
  std::int64_t partial_floats = 0;
  std::int64_t total_cost = 0;
  std::vector<float> partials;
  std::unique_ptr<std::atomic<std::int32_t>[]> pending;  ///< by split: parts not done yet
  std::size_t pending_size = 0;
};

/// Which rows stand at which positions, and who attends to what.
class AttentionPlan {
 public:
  explicit AttentionPlan(const ModelConfig& config);

  /// The chunks are copied, the spans they hold are not. `threads` bounds the number of items, never the result.
  void build(std::span<const SequenceChunk> chunks, int threads);

  std::int64_t rows() const { return static_cast<std::int64_t>(row_chunk_.size()); }
  std::span<const SequenceChunk> chunks() const { return chunks_; }

 private:
  friend class AttentionRun;
  void build(AttentionSchedule& schedule, int threads);
  /// Segments [first, second) that hold what `queries` positions of a chunk see.
  std::pair<std::int64_t, std::int64_t> segments_of(const AttentionSchedule& schedule, const SequenceChunk& chunk,
                                                    std::int64_t first_query, std::int64_t queries) const;
  void add_items(AttentionSchedule& schedule, std::int32_t chunk, std::int64_t target_cost);
  void rotations(AttentionSchedule& schedule) const;

  std::int64_t heads_, kv_heads_, head_dim_, group_;
  double scale_;
  std::int64_t tile_positions_;               ///< query positions per item
  std::vector<AttentionSchedule> schedules_;  ///< one per kind of layer that the model has
  std::vector<std::size_t> schedule_of_;      ///< by layer
  std::vector<SequenceChunk> chunks_;
  std::vector<std::int64_t> first_row_;  ///< by chunk
  std::vector<std::int32_t> row_chunk_;  ///< by row
};

/// q: [rows, heads * head_dim], replaced by the output; k, v: [rows, kv_heads * head_dim], k is rotated in place; both
/// are written into the blocks of `cache`. Each row's result is bit-equal for every
/// way to cut its sequence into chunks, whatever else is in the step, and any number of threads.
void attend(ThreadPool& pool, const AttentionKernels& kernels, AttentionPlan& plan, std::int64_t layer, float* q,
            float* k, const float* v, CpuPagedKvCache& cache);

}  // namespace spear
