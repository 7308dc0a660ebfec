#include "ops/cpu/attention.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace spear {
namespace {

constexpr std::int64_t kTileRows = 48;       // query rows per item: their scores of a segment stay in L2
constexpr std::int64_t kItemsPerThread = 6;  // enough to even out, few enough to draw
constexpr std::int64_t kInlineCost = 64;     // below this a wake-up costs more than it saves
constexpr std::int64_t kBlocksAhead = 3;     // of the next segment, to be prefetched
constexpr double kLog2E = 1.4426950408889634;

template <class T>
T* grown(std::vector<T>& buffer, std::int64_t size) {
  if (static_cast<std::int64_t>(buffer.size()) < size) buffer.resize(static_cast<std::size_t>(size));
  return buffer.data();
}

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

AttentionPlan::AttentionPlan(const ModelConfig& config)
    : heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      group_(heads_ / kv_heads_),
      scale_(config.attention_scale()),
      tile_positions_(std::max<std::int64_t>(kTileRows / group_, 1)) {
  std::array<std::size_t, 2> known{};  // by locality: index + 1
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const bool local = config.is_local(layer);
    if (known[local] == 0) {
      AttentionSchedule& schedule = schedules_.emplace_back();
      schedule.window = config.window(layer);
      schedule.inverse_frequency = config.rope_frequencies(local);
      known[local] = schedules_.size();
    }
    schedule_of_.push_back(known[local] - 1);
  }
}

void AttentionPlan::build(std::span<const SequenceChunk> chunks, int threads) {
  chunks_.assign(chunks.begin(), chunks.end());
  first_row_.clear();
  row_chunk_.clear();
  for (std::size_t c = 0; c < chunks_.size(); ++c) {
    first_row_.push_back(rows());
    row_chunk_.insert(row_chunk_.end(), chunks_[c].tokens.size(), static_cast<std::int32_t>(c));
  }
  for (AttentionSchedule& schedule : schedules_) build(schedule, threads);
}

std::pair<std::int64_t, std::int64_t> AttentionPlan::segments_of(const AttentionSchedule& schedule,
                                                                 const SequenceChunk& chunk, std::int64_t first_query,
                                                                 std::int64_t queries) const {
  const std::int64_t first = chunk.first_position + first_query;
  const std::int64_t begin = schedule.window > 0 ? std::max<std::int64_t>(first + 1 - schedule.window, 0) : 0;
  return {begin / kSegmentTokens, ceil_divide(first + queries, kSegmentTokens)};
}

void AttentionPlan::build(AttentionSchedule& schedule, int threads) {
  schedule.total_cost = 0;
  for (const SequenceChunk& chunk : chunks_) {
    const auto length = static_cast<std::int64_t>(chunk.tokens.size());
    const auto [begin, end] = segments_of(schedule, chunk, 0, length);
    schedule.total_cost += kv_heads_ * ceil_divide(length * group_, 4) * (end - begin);
  }
  rotations(schedule);
  schedule.items.clear();
  schedule.splits.clear();
  schedule.partial_floats = 0;
  const std::int64_t target = threads < 2 ? schedule.total_cost
                                          : std::max<std::int64_t>(schedule.total_cost / (threads * kItemsPerThread), 1);
  for (std::size_t c = 0; c < chunks_.size(); ++c) add_items(schedule, static_cast<std::int32_t>(c), target);
  std::sort(schedule.items.begin(), schedule.items.end(),
            [](const AttentionItem& a, const AttentionItem& b) { return a.cost > b.cost; });
  grown(schedule.partials, schedule.partial_floats);
  if (schedule.pending_size < schedule.splits.size()) {
    schedule.pending_size = 2 * schedule.splits.size();
    schedule.pending = std::make_unique<std::atomic<std::int32_t>[]>(schedule.pending_size);
  }
}

void AttentionPlan::add_items(AttentionSchedule& schedule, std::int32_t chunk, std::int64_t target_cost) {
  const SequenceChunk& c = chunks_[static_cast<std::size_t>(chunk)];
  const auto length = static_cast<std::int64_t>(c.tokens.size());
  for (std::int64_t first = 0; first < length; first += tile_positions_) {
    const std::int64_t queries = std::min(tile_positions_, length - first);
    const auto [first_segment, last_segment] = segments_of(schedule, c, first, queries);
    const std::int64_t segments = last_segment - first_segment;
    const std::int64_t segment_cost = ceil_divide(queries * group_, 4);
    const std::int64_t parts = std::min(segments, ceil_divide(segments * segment_cost, target_cost));
    for (std::int32_t head = 0; head < kv_heads_; ++head) {
      if (parts > 1) {
        schedule.splits.push_back({static_cast<std::int32_t>(parts), static_cast<std::int32_t>(first_segment),
                                   static_cast<std::int32_t>(segments), schedule.partial_floats});
        schedule.partial_floats +=
            segments * queries * group_ * (2 + ceil_divide(head_dim_, kBlockTokens) * kBlockTokens);
      }
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t begin = segments * part / parts, end = segments * (part + 1) / parts;
        schedule.items.push_back({chunk, head, static_cast<std::int32_t>(first), static_cast<std::int32_t>(queries),
                                  static_cast<std::int32_t>(first_segment + begin),
                                  static_cast<std::int32_t>(end - begin),
                                  parts > 1 ? static_cast<std::int32_t>(schedule.splits.size()) - 1 : -1,
                                  (end - begin) * segment_cost});
      }
    }
  }
}

void AttentionPlan::rotations(AttentionSchedule& schedule) const {
  const std::int64_t half = head_dim_ / 2;
  float* cos = grown(schedule.cos, rows() * half);
  float* sin = grown(schedule.sin, rows() * half);
  for (const SequenceChunk& chunk : chunks_) {
    for (std::size_t t = 0; t < chunk.tokens.size(); ++t, cos += half, sin += half) {
      const auto position = static_cast<double>(chunk.first_position + static_cast<std::int64_t>(t));
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = position * schedule.inverse_frequency[static_cast<std::size_t>(i)];
        cos[i] = static_cast<float>(std::cos(angle));
        sin[i] = static_cast<float>(std::sin(angle));
      }
    }
  }
}

/// One layer of a plan.
class AttentionRun {
 public:
  AttentionRun(const AttentionKernels& kernels, AttentionPlan& plan, std::int64_t layer, CpuPagedKvCache& cache)
      : kernels_(kernels),
        p_(plan),
        s_(plan.schedules_[plan.schedule_of_[static_cast<std::size_t>(layer)]]),
        layer_(layer),
        cache_(cache),
        width_(cache.layout().panels * kBlockTokens) {
    for (std::size_t s = 0; s < s_.splits.size(); ++s) {
      s_.pending[s].store(s_.splits[s].parts, std::memory_order_relaxed);
    }
  }

  bool worth_waking() const { return s_.total_cost > kInlineCost && s_.items.size() > 1; }

  void append(std::int64_t row, float* k, const float* v) const {
    const SequenceChunk& chunk = p_.chunks_[static_cast<std::size_t>(p_.row_chunk_[static_cast<std::size_t>(row)])];
    const std::int64_t position = position_of(row);
    const bool last = position + 1 == chunk.first_position + static_cast<std::int64_t>(chunk.tokens.size());
    const std::int64_t half = p_.head_dim_ / 2;
    const std::int32_t id = chunk.block_table[static_cast<std::size_t>(position / kBlockTokens)];
    for (std::int64_t head = 0; head < p_.kv_heads_; ++head) {
      float* const key = k + (row * p_.kv_heads_ + head) * p_.head_dim_;
      kernels_.rotate(key, s_.cos.data() + row * half, s_.sin.data() + row * half, half, key);
      kernels_.append(cache_.layout(), cache_.block(layer_, id, head), position % kBlockTokens, last, key,
                      v + (row * p_.kv_heads_ + head) * p_.head_dim_);
    }
  }

  /// Draws items until there are none.
  void work(float* q) {
    for (;;) {
      const std::int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= static_cast<std::int64_t>(s_.items.size())) return;
      run(s_.items[static_cast<std::size_t>(index)], q);
    }
  }

 private:
  struct Scratch {
    std::vector<float> queries, rotated, scores, weights, maxima, sums, mixed, running;
  };

  std::int64_t position_of(std::int64_t row) const {
    const auto chunk = static_cast<std::size_t>(p_.row_chunk_[static_cast<std::size_t>(row)]);
    return p_.chunks_[chunk].first_position + row - p_.first_row_[chunk];
  }

  /// Row r of an item is head r % group of position r / group.
  float* head_of(const AttentionItem& item, std::int64_t r, float* q) const {
    const std::int64_t row = p_.first_row_[static_cast<std::size_t>(item.chunk)] + item.first_query + r / p_.group_;
    return q + (row * p_.heads_ + item.kv_head * p_.group_ + r % p_.group_) * p_.head_dim_;
  }

  void pack(const AttentionItem& item, std::int64_t rows, float* q, Scratch& s) const {
    const std::int64_t half = p_.head_dim_ / 2, width = cache_.layout().query_floats;
    const auto scale = static_cast<float>(kLog2E * p_.scale_);
    float* const packed = grown(s.queries, rows * width);
    float* const rotated = grown(s.rotated, p_.head_dim_);
    const std::int64_t first = p_.first_row_[static_cast<std::size_t>(item.chunk)] + item.first_query;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t angle = (first + r / p_.group_) * half;
      kernels_.rotate(head_of(item, r, q), s_.cos.data() + angle, s_.sin.data() + angle, half, rotated);
      kernels_.pack_query(cache_.layout(), rotated, scale, packed + r * width);
    }
  }

  void run(const AttentionItem& item, float* q) {
    thread_local Scratch s;
    const std::int64_t rows = item.queries * p_.group_;
    pack(item, rows, q, s);
    SegmentTask task;
    task.layout = &cache_.layout();
    task.prefetch = prefetch_;
    task.rows = rows;
    task.group = p_.group_;
    task.queries = s.queries.data();
    task.scores = grown(s.scores, rows * kSegmentTokens);
    task.weights = grown(s.weights, rows * kSegmentTokens);
    task.maxima = grown(s.maxima, rows);
    task.sums = grown(s.sums, rows);
    task.mixed = grown(s.mixed, rows * width_);
    float* const running = grown(s.running, rows * (2 + width_));
    if (item.split < 0) std::fill_n(running, 2 * rows, 0.0F);
    for (std::int64_t segment = item.first_segment; segment < item.first_segment + item.segments; ++segment) {
      if (item.split >= 0) aim_at_partials(item, segment, task);
      run_segment(item, segment, task);
      if (item.split < 0) merge(task, running);
    }
    if (item.split < 0) {
      finish(item, running, q);
    } else if (s_.pending[static_cast<std::size_t>(item.split)].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      merge_partials(item, task, running, q);
    }
  }

  const std::byte* block(const AttentionItem& item, std::int64_t index) const {
    const auto& table = p_.chunks_[static_cast<std::size_t>(item.chunk)].block_table;
    return cache_.block(layer_, table[static_cast<std::size_t>(index)], item.kv_head);
  }

  /// Blocks that hold what the item's queries see.
  std::int64_t context_blocks(const AttentionItem& item) const {
    const SequenceChunk& chunk = p_.chunks_[static_cast<std::size_t>(item.chunk)];
    return ceil_divide(chunk.first_position + item.first_query + item.queries, kBlockTokens);
  }

  void run_segment(const AttentionItem& item, std::int64_t segment, SegmentTask& task) const {
    const SequenceChunk& chunk = p_.chunks_[static_cast<std::size_t>(item.chunk)];
    const std::int64_t start = segment * kSegmentTokens, first = start / kBlockTokens;
    const std::int64_t end = chunk.first_position + item.first_query + item.queries;
    std::array<const std::byte*, kSegmentBlocks> blocks;
    std::array<const std::byte*, kBlocksAhead> next;
    const std::int64_t count = std::min(context_blocks(item) - first, kSegmentBlocks);
    for (std::int64_t j = 0; j < count; ++j) blocks[static_cast<std::size_t>(j)] = block(item, first + j);

    // What this thread reads next: more of this item, or whatever item is likely to be drawn then.
    const AttentionItem* follower = &item;
    std::int64_t from = first + kSegmentBlocks;
    if (segment + 1 == item.first_segment + item.segments) {
      const auto likely = static_cast<std::size_t>(next_.load(std::memory_order_relaxed));
      follower = likely < s_.items.size() ? &s_.items[likely] : nullptr;
      from = follower == nullptr ? 0 : follower->first_segment * kSegmentBlocks;
    }
    task.next_count =
        follower == nullptr ? 0 : std::clamp<std::int64_t>(context_blocks(*follower) - from, 0, kBlocksAhead);
    for (std::int64_t j = 0; j < task.next_count; ++j) next[static_cast<std::size_t>(j)] = block(*follower, from + j);

    task.blocks = blocks.data();
    task.next = next.data();
    task.tokens = std::min(end - start, kSegmentTokens);
    task.first_visible = chunk.first_position + item.first_query + 1 - start;
    task.window = s_.window;
    kernels_.segment(task);
  }

  void merge(const SegmentTask& task, float* running) const {
    float *const maxima = running, *const sums = running + task.rows, *const mixed = sums + task.rows;
    for (std::int64_t r = 0; r < task.rows; ++r) {
      kernels_.merge(task.maxima[r], task.sums[r], task.mixed + r * width_, width_, maxima + r, sums + r,
                     mixed + r * width_);
    }
  }

  void aim_at_partials(const AttentionItem& item, std::int64_t segment, SegmentTask& task) const {
    const AttentionSplit& split = s_.splits[static_cast<std::size_t>(item.split)];
    float* const part =
        s_.partials.data() + split.partials + (segment - split.first_segment) * task.rows * (2 + width_);
    task.maxima = part;
    task.sums = part + task.rows;
    task.mixed = part + 2 * task.rows;
  }

  /// In the order of the segments, as if one thread had done them all.
  void merge_partials(const AttentionItem& item, SegmentTask& task, float* running, float* q) const {
    std::fill_n(running, 2 * task.rows, 0.0F);
    const AttentionSplit& split = s_.splits[static_cast<std::size_t>(item.split)];
    for (std::int64_t i = 0; i < split.segments; ++i) {
      aim_at_partials(item, split.first_segment + i, task);
      merge(task, running);
    }
    finish(item, running, q);
  }

  void finish(const AttentionItem& item, const float* running, float* q) const {
    const std::int64_t rows = item.queries * p_.group_;
    for (std::int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0F / running[rows + r];
      const float* const mixed = running + 2 * rows + r * width_;
      float* const out = head_of(item, r, q);
      for (std::int64_t i = 0; i < p_.head_dim_; ++i) out[i] = mixed[i] * inverse;
    }
  }

  static inline const Prefetch prefetch_ = prefetch_of_this_processor();
  const AttentionKernels& kernels_;
  AttentionPlan& p_;
  AttentionSchedule& s_;
  const std::int64_t layer_;
  CpuPagedKvCache& cache_;
  const std::int64_t width_;
  std::atomic<std::int64_t> next_{0};
};

void attend(ThreadPool& pool, const AttentionKernels& kernels, AttentionPlan& plan, std::int64_t layer, float* q,
            float* k, const float* v, CpuPagedKvCache& cache) {
  AttentionRun run(kernels, plan, layer, cache);
  constexpr std::int64_t kRowGrain = 8;
  pool.parallel_for(plan.rows(), kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) run.append(row, k, v);
  });
  if (!run.worth_waking()) return run.work(q);
  pool.parallel_for(pool.size(), 1, [&](std::int64_t, std::int64_t) { run.work(q); });
}

}  // namespace spear
