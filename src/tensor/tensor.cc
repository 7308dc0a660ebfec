#include "tensor/tensor.h"

#include <fmt/format.h>

#include "base/error.h"

namespace spear {

std::int64_t element_count(const Shape& shape) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 48;
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) {
    if (dim < 0) throw bad_input(fmt::format("negative dimension in shape {}", to_string(shape)));
    if (dim != 0 && count > kLimit / dim) throw bad_input(fmt::format("shape {} is too large", to_string(shape)));
    count *= dim;
  }
  return count;
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor::Tensor(DType type, Shape shape)
    : type_(type),
      shape_(std::move(shape)),
      owned_(std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(element_count(shape_)) *
                                                      element_bytes(type))),
      bytes_(*owned_) {}

Tensor::Tensor(DType type, Shape shape, std::span<const std::byte> bytes, std::shared_ptr<const void> owner)
    : type_(type), shape_(std::move(shape)), owner_(std::move(owner)), bytes_(bytes) {
  if (static_cast<std::size_t>(element_count(shape_)) * element_bytes(type) != bytes.size()) {
    throw bad_input(fmt::format("{} bytes do not match {} of shape {}", bytes.size(), name(type), to_string(shape_)));
  }
}

Tensor Tensor::from_floats(Shape shape, std::span<const float> values) {
  Tensor result(DType::f32, std::move(shape));
  if (static_cast<std::size_t>(result.size()) != values.size()) {
    throw failed(fmt::format("{} values for shape {}", values.size(), to_string(result.shape())));
  }
  std::copy(values.begin(), values.end(), result.mutable_as<float>().begin());
  return result;
}

std::vector<float> Tensor::to_floats() const {
  const auto n = static_cast<std::size_t>(size());
  std::vector<float> out(n);
  // Mapped files need not be aligned: elements are read through memcpy.
  const auto convert = [&]<class Raw>(auto&& to_float) {
    for (std::size_t i = 0; i < n; ++i) {
      Raw raw;
      std::memcpy(&raw, bytes_.data() + i * sizeof(Raw), sizeof(Raw));
      out[i] = to_float(raw);
    }
  };
  switch (type_) {
    case DType::f32: convert.template operator()<float>([](float v) { return v; }); break;
    case DType::f64: convert.template operator()<double>([](double v) { return static_cast<float>(v); }); break;
    case DType::f16: convert.template operator()<std::uint16_t>(f16_to_f32); break;
    case DType::bf16: convert.template operator()<std::uint16_t>(bf16_to_f32); break;
    default: throw bad_input(fmt::format("expected a floating-point tensor, found {}", name(type_)));
  }
  return out;
}

Tensor Tensor::to(DType type) const {
  if (type == type_) return *this;
  const auto values = to_floats();
  if (type == DType::f32) return from_floats(shape_, values);
  if (type != DType::f16 && type != DType::bf16) throw failed(fmt::format("no conversion to {}", name(type)));
  Tensor result(type, shape_);
  const auto out = result.mutable_as<std::uint16_t>();
  for (std::size_t i = 0; i < values.size(); ++i) out[i] = type == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
  return result;
}

}  // namespace spear
