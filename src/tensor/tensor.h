// A tensor in host memory: dtype, shape, bytes in C order. Owns its bytes or shares a mapping.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace spear {

using Shape = std::vector<std::int64_t>;

/// Number of elements; throws Error(bad_input) on a negative dimension or overflow of 2^48.
std::int64_t element_count(const Shape& shape);
std::string to_string(const Shape& shape);  ///< "[576, 1536]"

class Tensor {
 public:
  Tensor() = default;
  /// Zero-filled.
  Tensor(DType type, Shape shape);
  /// A view of `bytes` kept alive by `owner` (a mapped file, another tensor).
  Tensor(DType type, Shape shape, std::span<const std::byte> bytes, std::shared_ptr<const void> owner);

  static Tensor from_floats(Shape shape, std::span<const float> values);

  DType dtype() const { return type_; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(std::size_t i) const { return shape_.at(i); }
  std::int64_t size() const { return element_count(shape_); }
  bool empty() const { return bytes_.empty(); }
  std::span<const std::byte> bytes() const { return bytes_; }

  template <class T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(bytes_.data()), bytes_.size() / sizeof(T)};
  }
  /// Writable elements; only for tensors that own their bytes (the two first constructors).
  template <class T>
  std::span<T> mutable_as() {
    return {reinterpret_cast<T*>(owned_->data()), owned_->size() / sizeof(T)};
  }

  /// Float32 copy of a floating-point tensor (any of f32, f16, bf16, f64).
  std::vector<float> to_floats() const;
  /// Copy converted to f32, f16 or bf16.
  Tensor to(DType type) const;

 private:
  DType type_ = DType::f32;
  Shape shape_;
  std::shared_ptr<std::vector<std::byte>> owned_;
  std::shared_ptr<const void> owner_;
  std::span<const std::byte> bytes_;
};

}  // namespace spear
