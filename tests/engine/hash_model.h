// A model whose next token is a hash of everything it finds in its blocks: whoever mixes up positions, blocks or
// requests gets other tokens. No arithmetic, so that thousands of engine steps take no time.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "model/paged_model.h"

namespace spear::testing {

class HashModel final : public PagedModel {
 public:
  static constexpr std::int64_t kBlock = 4;

  struct Cache final : PagedKvCache {
    explicit Cache(std::int64_t blocks) : held(static_cast<std::size_t>(blocks * kBlock), -1) {}
    std::int64_t block_size() const override { return kBlock; }
    std::int64_t num_blocks() const override { return static_cast<std::int64_t>(held.size()) / kBlock; }
    std::int64_t bytes() const override { return 0; }
    std::vector<std::int32_t> held;  ///< the "keys and values": token of every slot
  };

  HashModel() {
    config_.vocab_size = 101;
    config_.hidden_size = 4;
    config_.max_position_embeddings = 200;
  }

  const ModelConfig& config() const override { return config_; }
  std::int64_t block_size() const override { return kBlock; }
  std::int64_t block_bytes(KvCacheType) const override { return kBlock; }
  std::unique_ptr<PagedKvCache> make_paged_cache(std::int64_t num_blocks, KvCacheType) override {
    return std::make_unique<Cache>(num_blocks);
  }

  std::span<const float> step(std::span<const SequenceChunk> chunks, PagedKvCache& cache) override {
    auto& held = dynamic_cast<Cache&>(cache).held;
    ++steps;
    rows = 0;
    hidden_.clear();
    std::vector<std::int32_t> writers(held.size(), -1);
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const SequenceChunk& chunk = chunks[c];
      EXPECT_FALSE(chunk.tokens.empty());
      for (std::size_t t = 0; t < chunk.tokens.size(); ++t, ++rows) {
        const std::size_t slot = slot_of(chunk, chunk.first_position + static_cast<std::int64_t>(t));
        EXPECT_EQ(writers.at(slot), -1) << "two chunks write one slot";
        writers[slot] = static_cast<std::int32_t>(c);
        held.at(slot) = chunk.tokens[t] + offset_;
      }
    }
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const SequenceChunk& chunk = chunks[c];
      for (std::size_t t = 0; t < chunk.tokens.size(); ++t) {
        std::uint64_t hash = 7;
        for (std::int64_t p = 0; p <= chunk.first_position + static_cast<std::int64_t>(t); ++p) {
          const std::size_t slot = slot_of(chunk, p);
          EXPECT_TRUE(writers[slot] == -1 || writers[slot] == static_cast<std::int32_t>(c));
          hash = mix64(hash ^ static_cast<std::uint64_t>(held.at(slot)));
        }
        for (int i = 0; i < 4; ++i) hidden_.push_back(static_cast<float>((hash >> (16 * i)) & 0xffffU));
      }
    }
    return hidden_;
  }

  /// Another density leaves other keys and values.
  void set_compensator_density(double density) override {
    offset_ = static_cast<std::int32_t>(std::lround((1 - density) * 1e6));
  }

  void logits(std::span<const float> hidden, std::span<float> out) override {
    for (std::size_t row = 0; 4 * row < hidden.size(); ++row) {
      std::uint64_t hash = 0;
      for (std::size_t i = 0; i < 4; ++i) hash |= static_cast<std::uint64_t>(hidden[4 * row + i]) << (16 * i);
      Random random(hash);
      for (std::int64_t v = 0; v < config_.vocab_size; ++v) {
        out[row * static_cast<std::size_t>(config_.vocab_size) + static_cast<std::size_t>(v)] =
            static_cast<float>(3 * random.normal());
      }
    }
  }

  ModelConfig config_;
  std::int64_t steps = 0, rows = 0;  ///< calls so far; rows of the last one

 private:
  static std::size_t slot_of(const SequenceChunk& chunk, std::int64_t position) {
    return static_cast<std::size_t>(chunk.block_table[static_cast<std::size_t>(position / kBlock)] * kBlock +
                                    position % kBlock);
  }
  std::vector<float> hidden_;
  std::int32_t offset_ = 0;
};

}  // namespace spear::testing
