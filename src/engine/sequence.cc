#include "engine/sequence.h"

#include <algorithm>

#include "base/random.h"

namespace spear {

Sequence::Sequence(RequestId id, Request request, std::int64_t limit, std::int64_t vocab_size, std::int64_t block_size)
    : limit(limit), sampler(request.sampling), request_(std::move(request)), block_size_(block_size) {
  this->id = id;
  sampler.add_prompt(request_.prompt, vocab_size);
  tokens_.reserve(static_cast<std::size_t>(limit));
  tokens_ = request_.prompt;
  length = prompt_tokens();
  block_table_.reserve(static_cast<std::size_t>((limit + block_size - 1) / block_size));
}

std::int64_t Sequence::blocks_missing(std::int64_t tokens) const {
  const std::int64_t blocks = (tokens + block_size_ - 1) / block_size_;
  return std::max<std::int64_t>(blocks - static_cast<std::int64_t>(block_table_.size()), 0);
}

bool Sequence::reserve(BlockAllocator& blocks, std::int64_t tokens) {
  for (std::int64_t missing = blocks_missing(tokens); missing > 0; --missing) {
    const auto id = blocks.allocate();
    if (!id) return false;
    block_table_.push_back(*id);
  }
  return true;
}

std::uint64_t Sequence::root(const BlockAllocator& blocks) const {
  if (density_class == kAnyDensity) return blocks.root();
  return mix64(blocks.root() ^ static_cast<std::uint64_t>(density_class + 1));
}

void Sequence::match_prefix(BlockAllocator& blocks) {
  hash_ = root(blocks);
  const std::span<const std::int32_t> tokens(tokens_);
  const auto size = static_cast<std::size_t>(block_size_);
  for (std::size_t end = size; end < tokens.size(); end += size) {
    const auto block = tokens.subspan(end - size, size);
    const auto id = blocks.find(hash_, block);
    if (!id) break;
    hash_ = blocks.hash(hash_, block);
    block_table_.push_back(*id);
    ++published_;
  }
  computed = published_ * block_size_;
}

void Sequence::commit(BlockAllocator& blocks, bool publish) {
  computed += scheduled;
  scheduled = 0;
  if (!publish) return;
  for (; (published_ + 1) * block_size_ <= computed; ++published_) {
    const auto block = std::span<const std::int32_t>(tokens_).subspan(
        static_cast<std::size_t>(published_ * block_size_), static_cast<std::size_t>(block_size_));
    if (published_ == 0) hash_ = root(blocks);
    blocks.publish(block_table_[static_cast<std::size_t>(published_)], hash_, block);
    hash_ = blocks.hash(hash_, block);
  }
}

void Sequence::drop(BlockAllocator& blocks) {
  // The end first: it is of use to fewer others, and what is let go first is taken first.
  for (; !block_table_.empty(); block_table_.pop_back()) blocks.release(block_table_.back());
  computed = scheduled = published_ = 0;
}

void Sequence::append(std::int32_t token) {
  const auto& stops = request_.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    finished = FinishReason::eos;
    return;
  }
  tokens_.push_back(token);
  ++length;
  if (size() == limit) finished = FinishReason::length;
}

}  // namespace spear
