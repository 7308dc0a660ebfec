// Which blocks of the KV cache are free, held and by how many, and which of them hold a known prefix.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace spear {

/// Blocks are counted references. A full block can be published under the hash of everything up to its end; it is then
/// found by sequences with the same beginning, even after its last holder let it go, until its memory is needed: the
/// block that was let go longest ago is taken first. Nothing is allocated after construction.
class BlockAllocator {
 public:
  /// Throws Error(usage) for sizes below 1. `seed` keys the hashes, so that nobody can construct two prefixes that
  /// collide; blocks' tokens are compared as well.
  BlockAllocator(std::int64_t num_blocks, std::int64_t block_size, std::uint64_t seed);

  std::int64_t num_blocks() const { return static_cast<std::int64_t>(blocks_.size()); }
  std::int64_t block_size() const { return block_size_; }
  /// Blocks that allocate() can give out, published ones that nobody holds included.
  std::int64_t free_blocks() const { return free_; }

  /// A block with one reference, or nothing when all are held.
  std::optional<std::int32_t> allocate();
  void release(std::int32_t id);  ///< drops one reference

  /// The hash before a sequence's first block.
  std::uint64_t root() const { return seed_; }
  /// Of a prefix that ends with `tokens` (one block) after a prefix of hash `before`.
  std::uint64_t hash(std::uint64_t before, std::span<const std::int32_t> tokens) const;

  /// The published block for `tokens` (block_size of them) after the prefix of hash `before`, with one more
  /// reference; nothing if there is none.
  std::optional<std::int32_t> find(std::uint64_t before, std::span<const std::int32_t> tokens);

  /// Makes a held, full block known. If an equal one is known already, that one stays.
  void publish(std::int32_t id, std::uint64_t before, std::span<const std::int32_t> tokens);

  /// References of a block, for tests and metrics.
  std::int32_t references(std::int32_t id) const { return blocks_[static_cast<std::size_t>(id)].references; }

 private:
  static constexpr std::int32_t kNone = -1;
  struct Block {
    std::int32_t references = 0;
    std::int32_t previous = kNone, next = kNone;  // in the list of free blocks, longest free first
    std::int32_t chain = kNone;                   // next block of the same bucket
    bool published = false;
    std::uint64_t before = 0, hash = 0;
  };

  Block& at(std::int32_t id) { return blocks_[static_cast<std::size_t>(id)]; }
  std::int32_t& bucket(std::uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  std::span<std::int32_t> tokens_of(std::int32_t id);
  void link_free(std::int32_t id, bool first);
  void unlink_free(std::int32_t id);
  void forget(std::int32_t id);
  std::int32_t lookup(std::uint64_t before, std::uint64_t hash, std::span<const std::int32_t> tokens);

  std::int64_t block_size_, free_ = 0;
  std::uint64_t seed_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> buckets_;  // a power of two of them
  std::vector<std::int32_t> tokens_;   // [num_blocks, block_size], of published blocks
  std::int32_t first_free_ = kNone, last_free_ = kNone;
};

}  // namespace spear
