// From a tensor to the elements that tensor/elements.h knows.
#pragma once

#include <cstdint>

#include "torch/libtorch.h"

namespace spear {

template <class T>
T* data(const torch::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

/// Calls body(float{}) or, for bfloat16, body(std::uint16_t{}) by the tensor's type; throws c10::Error on another.
template <class Body>
void by_type(const torch::Tensor& tensor, Body&& body) {
  if (tensor.scalar_type() == torch::kBFloat16) {
    body(std::uint16_t{});
  } else {
    TORCH_CHECK(tensor.scalar_type() == torch::kFloat32, "fused op on ", tensor.scalar_type());
    body(float{});
  }
}

}  // namespace spear
