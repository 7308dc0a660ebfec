// Between host tensors of this project and libtorch.
#pragma once

#include "compensator/compensator.h"
#include "model/weights.h"
#include "tensor/tensor.h"
#include "torch/libtorch.h"

namespace spear {

/// Copy of a floating-point host tensor as float32.
torch::Tensor to_torch(const Tensor& tensor);
/// Dequantized float32 [rows, cols].
torch::Tensor to_torch(const LinearWeight& weight);
/// Copy in host memory, f32.
Tensor to_host(const torch::Tensor& tensor);

/// uint8 tensors, unchanged. What is in host memory already is shared by bytes_to_host, not copied.
torch::Tensor bytes_to_torch(const Tensor& tensor);
Tensor bytes_to_host(const torch::Tensor& tensor);

/// f16 bits of a float tensor, flattened; the value that a file will hold.
std::vector<std::uint16_t> f16_bits(const torch::Tensor& tensor);
std::vector<std::uint16_t> bf16_bits(const torch::Tensor& tensor);

/// Rounded to what f16 can hold, as float32; gradients pass straight through.
torch::Tensor round_to_f16(const torch::Tensor& tensor);

/// "auto": a GPU if libtorch has one, else the CPU; "cpu"; "cuda". Throws Error(usage) for another name, and for cuda where
/// libtorch has no GPU.
torch::Device device_named(const std::string& name);

/// What linears are computed in, offline: bfloat16 on a GPU and on a CPU that multiplies it faster than float32, else float32.
/// Intel's AVX-512 BF16 without AMX does not, and without such instructions torch and oneDNN emulate them, up to a hundred
/// times slower. SPEAR_FORCE_COMPUTE=bfloat16|float32 overrides it; throws
/// Error(usage) on another value.
torch::ScalarType compute_type(torch::Device device);
/// "bfloat16", "float32".
const char* name(torch::ScalarType compute);

}  // namespace spear
