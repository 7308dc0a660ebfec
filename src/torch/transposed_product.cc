#include "torch/transposed_product.h"

#ifdef SPEAR_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace spear {

#ifdef SPEAR_HAVE_ONEDNN
namespace {

using dnnl::memory;
using Strides = memory::dims;

constexpr auto kBf16 = memory::data_type::bf16;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

dnnl::stream& stream() {
  static thread_local dnnl::stream queue(engine());
  return queue;
}

memory::desc row_major(std::int64_t rows, std::int64_t cols, memory::data_type type) {
  return {{rows, cols}, type, Strides{cols, 1}};
}

memory::desc transposed(std::int64_t rows, std::int64_t cols, memory::data_type type) {
  return {{rows, cols}, type, Strides{1, rows}};
}

dnnl::matmul::primitive_desc product(const memory::desc& a, const memory::desc& b, const memory::desc& c) {
  return {dnnl::matmul::desc(a, b, c), engine()};
}

memory wrap(const memory::desc& desc, const torch::Tensor& tensor) { return {desc, engine(), tensor.data_ptr()}; }

}  // namespace

bool has_bf16_kernels() {
  static const bool found = [] {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bf16")) return false;  // oneDNN emulates them on any AVX-512
#endif
    try {
      product(row_major(64, 64, kBf16), row_major(64, 64, kBf16), row_major(64, 64, memory::data_type::f32));
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return found;
}

torch::Tensor transposed_product(const torch::Tensor& a, const torch::Tensor& b) {
  if (!a.is_cpu() || b.scalar_type() != torch::kBFloat16 || !has_bf16_kernels()) {
    return torch::matmul(a.to(torch::kFloat32).t(), b.to(torch::kFloat32));
  }
  const auto left = a.to(torch::kBFloat16).contiguous(), right = b.contiguous();
  const std::int64_t n = left.size(0), d1 = left.size(1), d2 = right.size(1);
  const auto out = torch::empty({d1, d2}, a.options().dtype(torch::kFloat32));
  const auto desc = product(transposed(d1, n, kBf16), row_major(n, d2, kBf16), row_major(d1, d2, memory::data_type::f32));
  dnnl::matmul(desc).execute(stream(), {{DNNL_ARG_SRC, wrap(desc.src_desc(), left)},
                                        {DNNL_ARG_WEIGHTS, wrap(desc.weights_desc(), right)},
                                        {DNNL_ARG_DST, wrap(desc.dst_desc(), out)}});
  stream().wait();
  return out;
}

#else

bool has_bf16_kernels() { return false; }

torch::Tensor transposed_product(const torch::Tensor& a, const torch::Tensor& b) {
  return torch::matmul(a.to(torch::kFloat32).t(), b.to(torch::kFloat32));
}

#endif

}  // namespace spear
