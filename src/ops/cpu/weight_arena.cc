#include "ops/cpu/weight_arena.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/error.h"
#include "base/progress.h"

namespace spear {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kChunk = std::size_t{64} << 20;  // of addresses: pages that nothing touches cost nothing
constexpr std::size_t kAlignment = 64;

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

std::shared_ptr<std::uint8_t> map_chunk(std::size_t size) {
  const std::size_t mapped = size + kHugePage;  // room to start at a huge page
  void* const base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    throw out_of_resources(fmt::format("{} for weights could not be mapped", format_bytes(static_cast<double>(size))),
                           "", "free memory, or use a smaller model");
  }
  auto* const start = reinterpret_cast<std::uint8_t*>(round_up(reinterpret_cast<std::uintptr_t>(base), kHugePage));
  madvise(start, size, MADV_HUGEPAGE);  // a wish: without it everything works, at normal pages' speed
  return {start, [base, mapped](std::uint8_t*) { munmap(base, mapped); }};
}

}  // namespace

std::shared_ptr<std::uint8_t> WeightArena::allocate(std::size_t bytes) {
  bytes = round_up(std::max<std::size_t>(bytes, 1), kAlignment);
  if (used_ + bytes > size_) {
    size_ = std::max(kChunk, round_up(bytes, kHugePage));
    chunk_ = map_chunk(size_);
    used_ = 0;
  }
  std::uint8_t* const start = chunk_.get() + used_;
  used_ += bytes;
  return {chunk_, start};
}

}  // namespace spear
