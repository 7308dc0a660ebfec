#include "engine/block_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

using Tokens = std::vector<std::int32_t>;

TEST(BlockAllocatorTest, CountsReferences) {
  BlockAllocator blocks(3, 2, 0);
  const auto a = *blocks.allocate(), b = *blocks.allocate(), c = *blocks.allocate();
  EXPECT_EQ((std::set<std::int32_t>{a, b, c}).size(), 3U);
  EXPECT_EQ(blocks.free_blocks(), 0);
  EXPECT_FALSE(blocks.allocate());
  blocks.release(b);
  EXPECT_EQ(blocks.free_blocks(), 1);
  EXPECT_EQ(blocks.allocate(), b);
}

TEST(BlockAllocatorTest, FindsWhatWasPublished) {
  BlockAllocator blocks(4, 2, 1);
  const auto root = blocks.root();
  const auto a = *blocks.allocate(), b = *blocks.allocate();
  blocks.publish(a, root, Tokens{1, 2});
  const auto after = blocks.hash(root, Tokens{1, 2});
  blocks.publish(b, after, Tokens{3, 4});
  EXPECT_EQ(blocks.find(root, Tokens{1, 2}), a);
  EXPECT_EQ(blocks.references(a), 2);
  EXPECT_EQ(blocks.find(after, Tokens{3, 4}), b);
  EXPECT_FALSE(blocks.find(root, Tokens{3, 4}));  // the same tokens behind another prefix
  EXPECT_FALSE(blocks.find(root, Tokens{2, 1}));
  for (int i = 0; i < 2; ++i) {
    blocks.release(b);
    blocks.release(a);
  }
  EXPECT_EQ(blocks.free_blocks(), 4);
  EXPECT_EQ(blocks.find(root, Tokens{1, 2}), a);  // let go, but not forgotten
  EXPECT_EQ(blocks.free_blocks(), 3);
}

TEST(BlockAllocatorTest, ForgetsWhatWasLetGoLongestAgo) {
  BlockAllocator blocks(3, 1, 2);
  const auto root = blocks.root();
  std::vector<std::int32_t> ids;
  for (std::int32_t token = 0; token < 3; ++token) {
    ids.push_back(*blocks.allocate());
    blocks.publish(ids.back(), root, Tokens{token});
  }
  for (const int i : {1, 0, 2}) blocks.release(ids[static_cast<std::size_t>(i)]);
  EXPECT_EQ(blocks.allocate(), ids[1]);
  EXPECT_FALSE(blocks.find(root, Tokens{1}));
  EXPECT_EQ(blocks.find(root, Tokens{0}), ids[0]);
  EXPECT_EQ(blocks.allocate(), ids[2]);
  EXPECT_FALSE(blocks.allocate());
}

TEST(BlockAllocatorTest, UnknownBlocksAreTakenBeforeKnownOnes) {
  BlockAllocator blocks(2, 1, 3);
  const auto known = *blocks.allocate(), unknown = *blocks.allocate();
  blocks.publish(known, blocks.root(), Tokens{5});
  blocks.release(known);
  blocks.release(unknown);
  EXPECT_EQ(blocks.allocate(), unknown);
}

TEST(BlockAllocatorTest, TwoEqualBlocksKeepTheFirst) {
  BlockAllocator blocks(2, 1, 4);
  const auto a = *blocks.allocate(), b = *blocks.allocate();
  blocks.publish(a, blocks.root(), Tokens{5});
  blocks.publish(b, blocks.root(), Tokens{5});
  EXPECT_EQ(blocks.find(blocks.root(), Tokens{5}), a);
  blocks.release(a);
  blocks.release(a);
  blocks.release(b);
  EXPECT_EQ(blocks.free_blocks(), 2);
}

TEST(BlockAllocatorTest, RandomUseKeepsItsBooks) {
  constexpr std::int64_t kBlocks = 13;
  BlockAllocator blocks(kBlocks, 1, 5);
  std::vector<std::int32_t> held;
  Random random(6);
  for (int i = 0; i < 20000; ++i) {
    const auto what = random.below(4);
    if (what == 0) {
      const auto id = blocks.allocate();
      EXPECT_EQ(id.has_value(),
                static_cast<std::int64_t>(std::set<std::int32_t>(held.begin(), held.end()).size()) < kBlocks);
      if (id) held.push_back(*id);
    } else if (what == 1 && !held.empty()) {
      std::swap(held[random.below(held.size())], held.back());
      blocks.release(held.back());
      held.pop_back();
    } else if (what == 2 && !held.empty()) {
      blocks.publish(held[random.below(held.size())], blocks.root(),
                     Tokens{static_cast<std::int32_t>(random.below(8))});
    } else if (const auto id = blocks.find(blocks.root(), Tokens{static_cast<std::int32_t>(random.below(8))})) {
      held.push_back(*id);
    }
    ASSERT_EQ(blocks.free_blocks(),
              kBlocks - static_cast<std::int64_t>(std::set<std::int32_t>(held.begin(), held.end()).size()));
    for (const auto id : held) ASSERT_EQ(blocks.references(id), std::count(held.begin(), held.end(), id));
  }
}

TEST(BlockAllocatorTest, RefusesNoBlocks) {
  EXPECT_THROW(BlockAllocator(0, 1, 0), Error);
  EXPECT_THROW(BlockAllocator(1, 0, 0), Error);
}

}  // namespace
}  // namespace spear
