// Memory of a step's intermediates. Buffers that were given back are used again: fresh pages cost more than much of what
// is computed in them.
#pragma once

#include <cstdint>
#include <memory>

namespace spear {

struct StepBufferReturn {
  std::int64_t capacity = 0;
  void operator()(float* data) const;
};
using StepBuffer = std::unique_ptr<float[], StepBufferReturn>;

/// At least `size` floats, aligned to 64 bytes, not initialized. Given back to the calling thread's own list.
StepBuffer take_step_buffer(std::int64_t size);

}  // namespace spear
