#include "recover/code_step.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "quant/quantized_linear.h"
#include "tensor/elements.h"
#include "tensor/vector_math.h"
#include "torch/by_type.h"

namespace spear {
namespace {

constexpr float kLowest = -0.49F, kHighest = 15.49F;

inline __attribute__((always_inline)) float code_at(const float* latent) {
  return std::min(std::max(std::floor(*latent + 0.5F), 0.0F), 15.0F);
}
inline __attribute__((always_inline)) float code_at(const std::uint8_t* code) { return *code; }

template <class Latent, class T>
inline __attribute__((always_inline)) void write_each(std::int64_t n, const Latent* latent, float scale, float zero, T* weight) {
  for (std::int64_t i = 0; i < n; ++i) elements::store(weight[i], (code_at(latent + i) - zero) * scale);
}

template <class T>
inline __attribute__((always_inline)) void sign_each(std::int64_t n, float* latent, const T* gradient, float rate) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = elements::load(gradient[i]);
    const float moved = latent[i] - (g > 0 ? rate : 0.0F) + (g < 0 ? rate : 0.0F);
    latent[i] = std::min(std::max(moved, kLowest), kHighest);
  }
}

// A template cannot be compiled for several instruction sets.
SPEAR_VECTOR_CLONES void write_run(std::int64_t n, const float* latent, float scale, float zero, std::uint16_t* weight) {
  write_each(n, latent, scale, zero, weight);
}
SPEAR_VECTOR_CLONES void write_run(std::int64_t n, const float* latent, float scale, float zero, float* weight) {
  write_each(n, latent, scale, zero, weight);
}
SPEAR_VECTOR_CLONES void write_run(std::int64_t n, const std::uint8_t* codes, float scale, float zero, std::uint16_t* weight) {
  write_each(n, codes, scale, zero, weight);
}
SPEAR_VECTOR_CLONES void write_run(std::int64_t n, const std::uint8_t* codes, float scale, float zero, float* weight) {
  write_each(n, codes, scale, zero, weight);
}
SPEAR_VECTOR_CLONES void sign_run(std::int64_t n, float* latent, const std::uint16_t* gradient, float rate) {
  sign_each(n, latent, gradient, rate);
}
SPEAR_VECTOR_CLONES void sign_run(std::int64_t n, float* latent, const float* gradient, float rate) {
  sign_each(n, latent, gradient, rate);
}

/// Calls body(row, group, first column, count) for every run of columns that share a scale.
template <class Body>
void for_each_run(std::int64_t rows, std::int64_t cols, const W4Scheme& scheme, Body&& body) {
  const std::int64_t width = scheme.group_size == 0 ? cols : scheme.group_size;
  at::parallel_for(0, rows, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t col = 0, group = 0; col < cols; col += width, ++group) body(row, group, col, std::min(width, cols - col));
    }
  });
}

bool fused(const torch::Tensor& tensor) {
  return tensor.is_cpu() && tensor.is_contiguous() && (tensor.scalar_type() == torch::kBFloat16 || tensor.scalar_type() == torch::kFloat32);
}

}  // namespace

torch::Tensor nearest_codes(const torch::Tensor& latent) {
  if (latent.scalar_type() == torch::kUInt8) return latent;
  return torch::floor(latent + 0.5).clamp_(0, 15).to(torch::kUInt8);
}

void write_weight(const LatentWeight& latent, const torch::Tensor& scales, torch::Tensor& weight) {
  torch::NoGradGuard no_grad;
  const std::int64_t rows = latent.latent.size(0), cols = latent.latent.size(1), groups = scales.size(1);
  if (!fused(weight) || latent.group_index.defined()) {
    const auto by_column = [&](const torch::Tensor& t) { return expand_groups(t, cols, latent.scheme, latent.group_index); };
    weight.copy_((nearest_codes(latent.latent) - by_column(latent.zeros)) * by_column(scales));
    return;
  }
  const float *s = scales.data_ptr<float>(), *z = latent.zeros.data_ptr<float>();
  const auto write = [&](const auto* from) {
    by_type(weight, [&](auto tag) {
      auto* const to = data<decltype(tag)>(weight);
      for_each_run(rows, cols, latent.scheme, [=](std::int64_t row, std::int64_t group, std::int64_t col, std::int64_t count) {
        const std::int64_t at = row * cols + col;
        write_run(count, from + at, s[row * groups + group], z[row * groups + group], to + at);
      });
    });
  };
  if (latent.latent.scalar_type() == torch::kUInt8) {
    write(latent.latent.data_ptr<std::uint8_t>());
  } else {
    write(latent.latent.data_ptr<float>());
  }
}

void step_codes(LatentWeight& latent, const torch::Tensor& scales, const torch::Tensor& weight_gradient, double rate) {
  torch::NoGradGuard no_grad;
  const std::int64_t rows = latent.latent.size(0), cols = latent.latent.size(1), groups = scales.size(1);
  if (!fused(weight_gradient) || latent.group_index.defined()) {
    const auto by_column = expand_groups(scales, cols, latent.scheme, latent.group_index);
    const auto direction = weight_gradient.to(torch::kFloat32).sign() * by_column.sign();
    latent.latent.sub_(direction, rate).clamp_(kLowest, kHighest);
    return;
  }
  float* position = latent.latent.data_ptr<float>();
  const float* s = scales.data_ptr<float>();
  by_type(weight_gradient, [&](auto tag) {
    const auto* const g = data<decltype(tag)>(weight_gradient);
    for_each_run(rows, cols, latent.scheme, [&](std::int64_t row, std::int64_t group, std::int64_t col, std::int64_t count) {
      const auto signed_rate = static_cast<float>(s[row * groups + group] < 0 ? -rate : rate);
      sign_run(count, position + row * cols + col, g + row * cols + col, signed_rate);
    });
  });
}

torch::Tensor log_scale_gradient(const torch::Tensor& weight_gradient, const torch::Tensor& weight, const W4Scheme& scheme,
                                 const torch::Tensor& group_index) {
  torch::NoGradGuard no_grad;
  auto product = weight_gradient.to(torch::kFloat32) * weight.to(torch::kFloat32);
  if (group_index.defined()) product = product.index_select(1, torch::argsort(group_index));  // within a group any order
  if (scheme.group_size == 0) return product.sum(1, true);
  const std::int64_t cols = product.size(1), groups = (cols + scheme.group_size - 1) / scheme.group_size;
  return torch::constant_pad_nd(product, {0, groups * scheme.group_size - cols})
      .view({product.size(0), groups, scheme.group_size})
      .sum(-1);
}

}  // namespace spear
