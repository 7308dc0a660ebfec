#include "torch/torch_tensors.h"

#include <fmt/format.h>
#include <torch/cuda.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "torch/transposed_product.h"

namespace spear {
namespace {

std::vector<std::uint16_t> bits_of(const torch::Tensor& tensor, torch::ScalarType type) {
  const auto host = tensor.detach().to(torch::kCPU, type).contiguous();
  const auto* data = static_cast<const std::uint16_t*>(host.data_ptr());
  return {data, data + host.numel()};
}

/// Intel's cores start one bfloat16 product of vectors per cycle, or two float32 ones: as many multiply-adds.
/// With AMX they do sixteen times that, and AMD's start as many of either.
bool multiplies_bf16_faster() {
#ifdef __x86_64__
  __builtin_cpu_init();
  return !__builtin_cpu_is("intel") || __builtin_cpu_supports("amx-bf16");
#else
  return true;
#endif
}

}  // namespace

torch::Tensor to_torch(const Tensor& tensor) {
  const auto values = tensor.to_floats();
  return torch::from_blob(const_cast<float*>(values.data()), tensor.shape(), torch::kFloat32).clone();
}

torch::Tensor to_torch(const LinearWeight& weight) {
  const auto values = dequantize(weight);
  return torch::from_blob(const_cast<float*>(values.data()), shape_of(weight), torch::kFloat32).clone();
}

Tensor to_host(const torch::Tensor& tensor) {
  const auto host = tensor.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  return Tensor::from_floats(host.sizes().vec(), {host.data_ptr<float>(), static_cast<std::size_t>(host.numel())});
}

torch::Tensor bytes_to_torch(const Tensor& tensor) {
  const auto values = tensor.as<std::uint8_t>();
  return torch::from_blob(const_cast<std::uint8_t*>(values.data()), tensor.shape(), torch::kUInt8).clone();
}

Tensor bytes_to_host(const torch::Tensor& tensor) {
  const auto host = std::make_shared<const torch::Tensor>(tensor.to(torch::kCPU, torch::kUInt8).contiguous());
  const std::span bytes(host->data_ptr<std::uint8_t>(), static_cast<std::size_t>(host->numel()));
  return Tensor(DType::u8, host->sizes().vec(), std::as_bytes(bytes), host);
}

std::vector<std::uint16_t> f16_bits(const torch::Tensor& tensor) { return bits_of(tensor, torch::kFloat16); }
std::vector<std::uint16_t> bf16_bits(const torch::Tensor& tensor) { return bits_of(tensor, torch::kBFloat16); }

torch::Tensor round_to_f16(const torch::Tensor& tensor) {
  return tensor + (tensor.detach().to(torch::kFloat16).to(torch::kFloat32) - tensor.detach());
}

torch::Device device_named(const std::string& name) {
  if (name == "cpu") return torch::kCPU;
  if (name != "auto" && name != "cuda") throw usage_error(fmt::format("'{}' is no device", name), "--device", "use auto, cpu or cuda");
  if (torch::cuda::is_available()) return torch::kCUDA;
  if (name == "auto") return torch::kCPU;
  throw usage_error("this libtorch has no GPU", "--device cuda", "use --device cpu, or build with a libtorch for CUDA and check nvidia-smi");
}

torch::ScalarType compute_type(torch::Device device) {
  constexpr const char* kVariable = "SPEAR_FORCE_COMPUTE";
  if (const char* forced = std::getenv(kVariable)) {
    for (const auto type : {torch::kBFloat16, torch::kFloat32}) {
      if (std::string_view(forced) == name(type)) return type;
    }
    throw usage_error(fmt::format("'{}' is neither bfloat16 nor float32", forced), kVariable, "unset it");
  }
  return device.is_cuda() || (has_bf16_kernels() && multiplies_bf16_faster()) ? torch::kBFloat16 : torch::kFloat32;
}

const char* name(torch::ScalarType compute) { return compute == torch::kBFloat16 ? "bfloat16" : "float32"; }

}  // namespace spear
