// Memory for weights in kernel order: large anonymous mappings on huge pages, filled from the start in the order in
// which a step reads them. A stream of weights then crosses few page boundaries and no gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace spear {

class WeightArena {
 public:
  WeightArena() = default;
  WeightArena(WeightArena&&) = default;
  WeightArena& operator=(WeightArena&&) = default;

  /// `bytes` zeroed bytes at a multiple of 64, kept alive by the result. Throws Error(out_of_resources).
  std::shared_ptr<std::uint8_t> allocate(std::size_t bytes);

 private:
  std::shared_ptr<std::uint8_t> chunk_;
  std::size_t size_ = 0, used_ = 0;
};

}  // namespace spear
