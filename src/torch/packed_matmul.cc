#include "torch/packed_matmul.h"

#include "base/error.h"

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

memory::data_type onednn_type(torch::ScalarType type) {
  if (type == torch::kBFloat16) return kBf16;
  if (type == torch::kFloat32) return memory::data_type::f32;
  throw failed("products are bfloat16 or float32", "packed_matmul");
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

struct PackedWeight::State {
  torch::Tensor weight;
  std::int64_t rows = 0;  ///< of x that everything below was made for
  torch::ScalarType out_type = torch::kBFloat16;
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul run;
  memory packed;
};

PackedWeight::PackedWeight(torch::Tensor weight) : state_(std::make_unique<State>()) {
  if (!has_bf16_kernels() || !weight.is_cpu() || weight.scalar_type() != torch::kBFloat16 || weight.dim() != 2) {
    throw failed("a packed weight is a bfloat16 matrix on a CPU with bfloat16 kernels", "packed_matmul");
  }
  state_->weight = weight.contiguous();
}

torch::Tensor PackedWeight::multiply(const torch::Tensor& given, torch::ScalarType out_type) {
  State& s = *state_;
  const auto x = given.contiguous();
  const std::int64_t m = x.size(0), in = s.weight.size(1), out = s.weight.size(0);
  const auto y = torch::empty({m, out}, x.options().dtype(out_type));
  const auto y_desc = row_major(m, out, onednn_type(out_type));
  if (s.rows != m || s.out_type != out_type) {
    s.desc = product(row_major(m, in, kBf16), memory::desc({in, out}, kBf16, memory::format_tag::any), y_desc);
    s.run = dnnl::matmul(s.desc);
    if (!s.packed || s.packed.get_desc() != s.desc.weights_desc()) {
      auto plain = wrap(transposed(in, out, kBf16), s.weight);
      s.packed = memory(s.desc.weights_desc(), engine());
      dnnl::reorder(plain, s.packed).execute(stream(), plain, s.packed);
    }
    s.rows = m;
    s.out_type = out_type;
  }
  s.run.execute(stream(), {{DNNL_ARG_SRC, wrap(s.desc.src_desc(), x)}, {DNNL_ARG_WEIGHTS, s.packed}, {DNNL_ARG_DST, wrap(y_desc, y)}});
  stream().wait();
  return y;
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

struct PackedWeight::State {};

PackedWeight::PackedWeight(torch::Tensor) { throw failed("this build has no oneDNN", "packed_matmul"); }

torch::Tensor PackedWeight::multiply(const torch::Tensor& x, torch::ScalarType) { return x; }

torch::Tensor transposed_product(const torch::Tensor& a, const torch::Tensor& b) {
  return torch::matmul(a.to(torch::kFloat32).t(), b.to(torch::kFloat32));
}

#endif

PackedWeight::~PackedWeight() = default;
PackedWeight::PackedWeight(PackedWeight&&) noexcept = default;
PackedWeight& PackedWeight::operator=(PackedWeight&&) noexcept = default;

}  // namespace spear
