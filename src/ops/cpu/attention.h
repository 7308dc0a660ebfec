// Rotary embedding and causal grouped-query attention over a contiguous key/value cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "model/config.h"
#include "model/forward_model.h"
#include "ops/cpu/kernels.h"

namespace spear {

/// Keys and values in float32: per layer [batch, kv_heads, capacity, head_dim]. Keys are stored rotated.
class CpuKvCache final : public KvCache {
 public:
  /// `layers` slots; 1 makes every layer use the same one, which is enough when nothing is kept between calls.
  /// Throws Error(out_of_resources) when the machine's memory cannot hold it.
  CpuKvCache(const ModelConfig& config, std::int64_t layers, std::int64_t batch, std::int64_t capacity);

  std::int64_t length() const override { return length_; }
  std::int64_t capacity() const override { return capacity_; }
  std::int64_t batch() const { return batch_; }
  void advance(std::int64_t tokens) { length_ += tokens; }

  float* keys(std::int64_t layer, std::int64_t sequence, std::int64_t head) { return at(keys_, layer, sequence, head); }
  float* values(std::int64_t layer, std::int64_t sequence, std::int64_t head) {
    return at(values_, layer, sequence, head);
  }

 private:
  float* at(std::vector<float>& data, std::int64_t layer, std::int64_t sequence, std::int64_t head) {
    const std::int64_t slot = ((layer % layers_) * batch_ + sequence) * heads_ + head;
    return data.data() + slot * capacity_ * head_dim_;
  }

  std::int64_t layers_, batch_, heads_, capacity_, head_dim_, length_ = 0;
  std::vector<float> keys_, values_;
};

/// cos and sin of position * theta^(-2 i / head_dim) for consecutive positions.
class RotaryTable {
 public:
  RotaryTable(const ModelConfig& config, std::int64_t first_position, std::int64_t count);

  /// Rotates the pairs (i, i + head_dim / 2) of one head, in place; `index` counts from first_position.
  void rotate(std::int64_t index, float* head) const;

 private:
  std::int64_t half_;
  std::vector<float> cos_, sin_;  ///< [count, half_]
};

/// The tokens of one call, and where their keys and values go.
struct AttentionShape {
  std::int64_t batch, length;  ///< rows of q, k, v: sequence * length + position
  std::int64_t heads, kv_heads, head_dim;
};

/// q: [batch * length, heads * head_dim], rotated in place; k, v: [batch * length, kv_heads * head_dim], k rotated in
/// place; both are appended to `cache` behind the tokens it holds. out: shape of q. Softmax scale 1 / sqrt(head_dim).
void attend(ThreadPool& pool, const Kernels& kernels, const AttentionShape& shape, std::int64_t layer, float* q,
            float* k, const float* v, const RotaryTable& rotary, CpuKvCache& cache, float* out);

}  // namespace spear
