// Runs attention over paged keys and values for tests: sequences cut into chunks, scattered and poisoned blocks.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/random.h"
#include "ops/comparison.h"
#include "ops/cpu/attention.h"
#include "ops/random_model.h"

namespace spear::testing {

struct AttentionShape {
  std::int64_t length, heads, kv_heads, head_dim;
  std::int64_t window = 0;  ///< 0: none
};

inline ModelConfig config_of(const AttentionShape& shape) {
  ModelConfig config;
  config.num_attention_heads = shape.heads;
  config.num_key_value_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.rope_theta = 10000.0;
  config.num_hidden_layers = 1;
  config.sliding_window = shape.window;
  if (shape.window > 0) config.local_layers = {true};
  return config;
}

/// One sequence: q [length, heads * head_dim]; k, v [length, kv_heads * head_dim].
struct AttentionInputs {
  AttentionShape shape;
  std::vector<float> q, k, v;
};

inline AttentionInputs random_inputs(const AttentionShape& shape, std::uint64_t seed) {
  return {shape, random_floats(shape.length * shape.heads * shape.head_dim, seed),
          random_floats(shape.length * shape.kv_heads * shape.head_dim, seed + 1),
          random_floats(shape.length * shape.kv_heads * shape.head_dim, seed + 2)};
}

inline std::vector<double> reference(const AttentionInputs& in) {
  const AttentionShape& s = in.shape;
  auto q = as_matrix(in.q, s.length, s.heads * s.head_dim);
  auto k = as_matrix(in.k, s.length, s.kv_heads * s.head_dim);
  const ModelConfig config = config_of(s);
  ref::rotate(q, s.head_dim, config.rope_frequencies(true), 0, s.length);
  ref::rotate(k, s.head_dim, config.rope_frequencies(true), 0, s.length);
  return ref::attention(q, k, as_matrix(in.v, s.length, s.kv_heads * s.head_dim), s.length, s.head_dim,
                        config.attention_scale(), s.window).values;
}

/// Sequences of one shape (but for the length) in one cache, advanced step by step.
class PagedAttention {
 public:
  PagedAttention(ThreadPool& pool, const AttentionKernels& kernels, const AttentionShape& shape, KvCacheType type,
                 std::int64_t num_blocks, std::uint64_t seed = 1)
      : pool_(pool),
        kernels_(kernels),
        shape_(shape),
        plan_(config_of(shape)),
        cache_(config_of(shape), 1, num_blocks, type),
        free_(static_cast<std::size_t>(num_blocks)) {
    std::iota(free_.begin(), free_.end(), 0);
    Random random(seed);
    for (std::size_t i = free_.size(); i > 1; --i) std::swap(free_[i - 1], free_[random.below(i)]);
    for (const std::int32_t id : free_) poison(id);
  }

  void add(const AttentionInputs& in) { sequences_.push_back({&in, 0, {}, std::vector<float>(in.q.size(), NAN)}); }

  /// counts[s] more tokens of every sequence s, in one step.
  void step(std::span<const std::int64_t> counts) {
    std::vector<SequenceChunk> chunks;
    std::vector<float> q, k, v;
    std::vector<std::int32_t> tokens(100000);
    for (std::size_t s = 0; s < counts.size(); ++s) {
      Sequence& sequence = sequences_[s];
      if (counts[s] == 0) continue;
      while (static_cast<std::int64_t>(sequence.table.size()) * kBlockTokens < sequence.done + counts[s]) {
        sequence.table.push_back(free_.back());
        free_.pop_back();
      }
      chunks.push_back({std::span(tokens).first(static_cast<std::size_t>(counts[s])), sequence.done, sequence.table});
      append(q, sequence.in->q, sequence.done, counts[s], width());
      append(k, sequence.in->k, sequence.done, counts[s], kv_width());
      append(v, sequence.in->v, sequence.done, counts[s], kv_width());
    }
    plan_.build(chunks, pool_.size());
    attend(pool_, kernels_, plan_, 0, q.data(), k.data(), v.data(), cache_);
    auto row = q.begin();
    for (std::size_t s = 0; s < counts.size(); ++s) {
      Sequence& sequence = sequences_[s];
      std::copy_n(row, counts[s] * width(), sequence.out.begin() + sequence.done * width());
      row += counts[s] * width();
      sequence.done += counts[s];
    }
  }

  const std::vector<float>& output(std::size_t sequence) const { return sequences_[sequence].out; }

 private:
  struct Sequence {
    const AttentionInputs* in;
    std::int64_t done;
    std::vector<std::int32_t> table;
    std::vector<float> out;
  };

  std::int64_t width() const { return shape_.heads * shape_.head_dim; }
  std::int64_t kv_width() const { return shape_.kv_heads * shape_.head_dim; }

  static void append(std::vector<float>& to, const std::vector<float>& from, std::int64_t first, std::int64_t count,
                     std::int64_t cols) {
    to.insert(to.end(), from.begin() + first * cols, from.begin() + (first + count) * cols);
  }

  /// All bits set: NaN in every floating format, scales included.
  void poison(std::int32_t id) {
    for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
      for (const std::int64_t half : {std::int64_t{0}, cache_.layout().values}) {
        std::fill_n(cache_.block(0, id, head) + half, cache_.layout().half_bytes, std::byte{0xff});
      }
    }
  }

  ThreadPool& pool_;
  const AttentionKernels& kernels_;
  AttentionShape shape_;
  AttentionPlan plan_;
  CpuPagedKvCache cache_;
  std::vector<std::int32_t> free_;
  std::vector<Sequence> sequences_;
};

/// One sequence in chunks of the given lengths (the rest in one).
inline std::vector<float> attend_alone(ThreadPool& pool, const AttentionKernels& kernels, const AttentionInputs& in,
                                       KvCacheType type, std::span<const std::int64_t> chunks = {}) {
  PagedAttention run(pool, kernels, in.shape, type, in.shape.length / kBlockTokens + 3);
  run.add(in);
  std::int64_t done = 0;
  for (const std::int64_t count : chunks) {
    run.step({&count, 1});
    done += count;
  }
  const std::int64_t rest = in.shape.length - done;
  if (rest > 0) run.step({&rest, 1});
  return run.output(0);
}

}  // namespace spear::testing
