#include "engine/block_allocator.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/random.h"

namespace spear {

BlockAllocator::BlockAllocator(std::int64_t num_blocks, std::int64_t block_size, std::uint64_t seed)
    : block_size_(block_size), seed_(mix64(seed)) {
  if (num_blocks < 1 || block_size < 1) {
    throw usage_error(fmt::format("{} blocks of {} tokens", num_blocks, block_size));
  }
  blocks_.resize(static_cast<std::size_t>(num_blocks));
  buckets_.assign(std::bit_ceil(2 * blocks_.size()), kNone);
  tokens_.resize(blocks_.size() * static_cast<std::size_t>(block_size));
  for (std::int32_t id = 0; id < static_cast<std::int32_t>(num_blocks); ++id) link_free(id, false);
}

std::optional<std::int32_t> BlockAllocator::allocate() {
  if (first_free_ == kNone) return std::nullopt;
  const std::int32_t id = first_free_;
  unlink_free(id);
  forget(id);
  at(id).references = 1;
  return id;
}

void BlockAllocator::release(std::int32_t id) {
  if (--at(id).references > 0) return;
  link_free(id, !at(id).published);  // what nobody can find again goes first
}

std::uint64_t BlockAllocator::hash(std::uint64_t before, std::span<const std::int32_t> tokens) const {
  std::uint64_t h = mix64(before ^ seed_);
  for (const std::int32_t token : tokens) h = mix64(h ^ (static_cast<std::uint64_t>(token) + seed_));
  return h;
}

std::optional<std::int32_t> BlockAllocator::find(std::uint64_t before, std::span<const std::int32_t> tokens) {
  const std::int32_t id = lookup(before, hash(before, tokens), tokens);
  if (id == kNone) return std::nullopt;
  if (at(id).references++ == 0) unlink_free(id);
  return id;
}

void BlockAllocator::publish(std::int32_t id, std::uint64_t before, std::span<const std::int32_t> tokens) {
  Block& block = at(id);
  const std::uint64_t h = hash(before, tokens);
  if (block.published || lookup(before, h, tokens) != kNone) return;
  std::copy(tokens.begin(), tokens.end(), tokens_of(id).begin());
  block.before = before;
  block.hash = h;
  block.published = true;
  block.chain = bucket(h);
  bucket(h) = id;
}

std::span<std::int32_t> BlockAllocator::tokens_of(std::int32_t id) {
  return std::span(tokens_).subspan(static_cast<std::size_t>(id * block_size_), static_cast<std::size_t>(block_size_));
}

void BlockAllocator::link_free(std::int32_t id, bool first) {
  Block& block = at(id);
  block.previous = first ? kNone : last_free_;
  block.next = first ? first_free_ : kNone;
  (block.previous == kNone ? first_free_ : at(block.previous).next) = id;
  (block.next == kNone ? last_free_ : at(block.next).previous) = id;
  ++free_;
}

void BlockAllocator::unlink_free(std::int32_t id) {
  Block& block = at(id);
  (block.previous == kNone ? first_free_ : at(block.previous).next) = block.next;
  (block.next == kNone ? last_free_ : at(block.next).previous) = block.previous;
  block.previous = block.next = kNone;
  --free_;
}

void BlockAllocator::forget(std::int32_t id) {
  Block& block = at(id);
  if (!block.published) return;
  std::int32_t* link = &bucket(block.hash);
  while (*link != id) link = &at(*link).chain;
  *link = block.chain;
  block.chain = kNone;
  block.published = false;
}

std::int32_t BlockAllocator::lookup(std::uint64_t before, std::uint64_t hash, std::span<const std::int32_t> tokens) {
  std::int32_t id = bucket(hash);
  for (; id != kNone; id = at(id).chain) {
    const Block& block = at(id);
    if (block.hash != hash || block.before != before) continue;
    const auto held = tokens_of(id);
    if (std::equal(held.begin(), held.end(), tokens.begin(), tokens.end())) return id;
  }
  return kNone;
}

}  // namespace spear
