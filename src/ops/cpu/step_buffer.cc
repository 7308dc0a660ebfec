#include "ops/cpu/step_buffer.h"

#include <algorithm>
#include <new>
#include <vector>

namespace spear {
namespace {

constexpr std::size_t kKept = 16;            // more than a layer has alive at once
constexpr std::int64_t kSlack = 4;           // a buffer is good for a quarter of its size and more
constexpr std::int64_t kSmall = 16 << 10;    // floats: what a malloc gives without new pages
constexpr std::align_val_t kAlignment{64};

struct Kept {
  std::int64_t capacity;
  float* data;
};

class KeptBuffers {
 public:
  ~KeptBuffers() {
    for (const Kept& kept : list_) ::operator delete(kept.data, kAlignment);
  }

  StepBuffer take(std::int64_t size) {
    auto best = list_.end();
    for (auto it = list_.begin(); it != list_.end(); ++it) {
      const bool fits = it->capacity >= size && it->capacity <= std::max(kSlack * size, kSmall);
      if (fits && (best == list_.end() || it->capacity < best->capacity)) best = it;
    }
    if (best != list_.end()) {
      const Kept kept = *best;
      list_.erase(best);
      return StepBuffer(kept.data, {kept.capacity});
    }
    auto* const data = static_cast<float*>(::operator new(static_cast<std::size_t>(size) * sizeof(float), kAlignment));
    return StepBuffer(data, {size});
  }

  void give(float* data, std::int64_t capacity) {
    if (list_.size() == kKept) {  // the one that lay there longest goes
      ::operator delete(list_.front().data, kAlignment);
      list_.erase(list_.begin());
    }
    list_.push_back({capacity, data});
  }

 private:
  std::vector<Kept> list_;
};

// A thread's list may be gone when the last buffers of its own static objects come back.
thread_local bool gone = false;
struct ThreadBuffers : KeptBuffers {
  ThreadBuffers() = default;
  ~ThreadBuffers() { gone = true; }
};
thread_local ThreadBuffers buffers;

}  // namespace

StepBuffer take_step_buffer(std::int64_t size) { return buffers.take(std::max<std::int64_t>(size, 1)); }

void StepBufferReturn::operator()(float* data) const {
  if (gone) return ::operator delete(data, kAlignment);
  buffers.give(data, capacity);
}

}  // namespace spear
