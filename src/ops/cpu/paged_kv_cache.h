// Keys and values of the online plane: one fixed piece of memory, cut into blocks (ops/cpu/attention_kernels.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/forward_model.h"
#include "model/paged_model.h"
#include "ops/cpu/attention_kernels.h"

namespace spear {

/// [layers][key/value heads][keys, values][num_blocks] halves of blocks: those of a long sequence are often neighbours, and a
/// core reads a long run faster than pieces of it.
class CpuPagedKvCache final : public PagedKvCache {
 public:
  /// `layers` slots; 1 makes every layer use the same one, which is enough when nothing is kept between calls. Pages
  /// are taken from the machine as they are first written. Throws Error(usage) for sizes below 1 and
  /// Error(out_of_resources) when the machine's memory cannot hold it.
  CpuPagedKvCache(const ModelConfig& config, std::int64_t layers, std::int64_t num_blocks, KvCacheType type);
  ~CpuPagedKvCache() override;
  CpuPagedKvCache(const CpuPagedKvCache&) = delete;
  CpuPagedKvCache& operator=(const CpuPagedKvCache&) = delete;

  std::int64_t block_size() const override { return kBlockTokens; }
  std::int64_t num_blocks() const override { return num_blocks_; }
  std::int64_t bytes() const override { return bytes_; }
  const KvBlockLayout& layout() const { return layout_; }

  /// Its keys; layout() says how far behind them the values are.
  std::byte* block(std::int64_t layer, std::int32_t id, std::int64_t head) const {
    return data_ + (layer % layers_ * heads_ + head) * num_blocks_ * layout_.bytes + id * layout_.half_bytes;
  }

 private:
  KvBlockLayout layout_;
  std::int64_t layers_, num_blocks_, heads_, bytes_ = 0;
  std::byte* data_ = nullptr;
};

/// Sequences of equal length with blocks of their own, for ForwardModel: sequence s has the consecutive blocks
/// [s * blocks per sequence, ...). Kept in float32.
class CpuKvCache final : public KvCache {
 public:
  /// `layers` as above. Throws like CpuPagedKvCache.
  CpuKvCache(const ModelConfig& config, std::int64_t layers, std::int64_t batch, std::int64_t capacity,
             KvCacheType type = KvCacheType::f32);

  std::int64_t length() const override { return length_; }
  std::int64_t capacity() const override { return capacity_; }
  std::int64_t batch() const { return batch_; }
  void advance(std::int64_t tokens) { length_ += tokens; }
  CpuPagedKvCache& paged() { return paged_; }
  std::span<const std::int32_t> block_table(std::int64_t sequence) const;

 private:
  std::int64_t batch_, capacity_, blocks_, length_ = 0;
  CpuPagedKvCache paged_;
  std::vector<std::int32_t> ids_;
};

}  // namespace spear
