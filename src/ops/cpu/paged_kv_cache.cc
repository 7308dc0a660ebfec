#include "ops/cpu/paged_kv_cache.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/progress.h"
#include "base/resources.h"

namespace spear {
namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

std::int64_t blocks_of(std::int64_t batch, std::int64_t capacity) {
  if (batch < 1 || capacity < 1) {
    throw usage_error(fmt::format("a cache of {} sequences x {} tokens", batch, capacity));
  }
  return (capacity + kBlockTokens - 1) / kBlockTokens;
}

/// Takes the pages now, not within steps: all layers reach a new one with the same token, and 30 huge pages take 30 ms. A
/// kernel that cannot (before Linux 5.14) gives them one by one, later.
void populate(std::byte* data, std::int64_t bytes) {
  constexpr std::int64_t kPart = std::int64_t{128} << 20;
  const std::int64_t parts = (bytes + kPart - 1) / kPart, threads = std::min<std::int64_t>(parts, usable_cores());
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t part; (part = next.fetch_add(1)) < parts;) {
      madvise(data + part * kPart, static_cast<std::size_t>(std::min(kPart, bytes - part * kPart)), MADV_POPULATE_WRITE);
    }
  };
  std::vector<std::jthread> helpers;
  for (std::int64_t i = 1; i < threads; ++i) helpers.emplace_back(work);
  work();
}

}  // namespace

CpuPagedKvCache::CpuPagedKvCache(const ModelConfig& config, std::int64_t layers, std::int64_t num_blocks,
                                 KvCacheType type)
    : layout_(block_layout(type, config.head_dim, num_blocks)),
      layers_(layers),
      num_blocks_(num_blocks),
      heads_(config.num_key_value_heads) {
  if (layers < 1 || num_blocks < 1) throw usage_error(fmt::format("a cache of {} blocks", num_blocks));
  const double size = static_cast<double>(layers) * static_cast<double>(num_blocks) * static_cast<double>(heads_) *
                      static_cast<double>(layout_.bytes);
  const auto free = static_cast<double>(available_memory_bytes());
  const auto refuse = [&] {
    return out_of_resources(
        fmt::format("the key/value cache needs {} and {} are free", format_bytes(size), format_bytes(free)), "",
        "use fewer tokens of context or fewer sequences at once");
  };
  if (size > free) throw refuse();
  bytes_ = layers_ * num_blocks_ * heads_ * layout_.bytes;
  void* const memory = mmap(nullptr, static_cast<std::size_t>(bytes_), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw refuse();
  data_ = static_cast<std::byte*>(memory);
  // Blocks of a sequence lie a few KB apart in every layer: small pages would miss the TLB on each.
  if (bytes_ >= kHugePage) madvise(memory, static_cast<std::size_t>(bytes_), MADV_HUGEPAGE);
  populate(data_, bytes_);
}

CpuPagedKvCache::~CpuPagedKvCache() { munmap(data_, static_cast<std::size_t>(bytes_)); }

CpuKvCache::CpuKvCache(const ModelConfig& config, std::int64_t layers, std::int64_t batch, std::int64_t capacity,
                       KvCacheType type)
    : batch_(batch),
      capacity_(capacity),
      blocks_(blocks_of(batch, capacity)),
      paged_(config, layers, batch * blocks_, type),
      ids_(static_cast<std::size_t>(batch * blocks_)) {
  std::iota(ids_.begin(), ids_.end(), 0);
}

std::span<const std::int32_t> CpuKvCache::block_table(std::int64_t sequence) const {
  return std::span(ids_).subspan(static_cast<std::size_t>(sequence * blocks_), static_cast<std::size_t>(blocks_));
}

}  // namespace spear
