#include "torch/fused_ops.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "torch/by_type.h"
#include "torch/fused_cpu.h"

namespace spear {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
using torch::autograd::Variable;

/// Rows whose partial sums are added one after the other: results do not depend on the number of threads.
constexpr std::int64_t kSumBlock = 256;

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& gain, double eps, torch::ScalarType type) {
    const std::int64_t rows = x.size(0), n = x.size(1);
    Tensor out = torch::empty({rows, n}, x.options().dtype(type)), inverse = torch::empty({rows}, x.options());
    const Tensor input = x.contiguous();
    by_type(out, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, rows, 16, [&](std::int64_t begin, std::int64_t end) {
        fused::rms_norm_forward<T>(end - begin, n, static_cast<float>(eps), data<float>(input) + begin * n,
                                   data<float>(gain), data<T>(out) + begin * n, data<float>(inverse) + begin);
      });
    });
    ctx->save_for_backward({input, gain, inverse});
    return out;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &gain = saved[1], &inverse = saved[2];
    const std::int64_t rows = x.size(0), n = x.size(1);
    const Tensor dy = grads[0].contiguous();
    Tensor dx = torch::empty_like(x);
    const bool want_gain = ctx->needs_input_grad(1);
    const std::int64_t blocks = (rows + kSumBlock - 1) / kSumBlock;
    Tensor dgain = want_gain ? torch::zeros({blocks, n}, x.options()) : Tensor();
    by_type(dy, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, blocks, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t block = first; block < last; ++block) {
          const std::int64_t begin = block * kSumBlock, count = std::min(kSumBlock, rows - begin);
          fused::rms_norm_backward<T>(count, n, data<float>(x) + begin * n, data<float>(gain), data<float>(inverse) + begin,
                                      data<T>(dy) + begin * n, data<float>(dx) + begin * n,
                                      want_gain ? data<float>(dgain) + block * n : nullptr);
        }
      });
    });
    return {dx, want_gain ? dgain.sum(0) : Tensor(), Tensor(), Tensor()};
  }
};

struct Swi {
  template <class T>
  static constexpr auto forward = fused::swiglu_forward<T>;
  template <class T>
  static constexpr auto backward = fused::swiglu_backward<T>;
};
struct Ge {
  template <class T>
  static constexpr auto forward = fused::geglu_forward<T>;
  template <class T>
  static constexpr auto backward = fused::geglu_backward<T>;
};

template <class Kernels>
class GatedUnit : public torch::autograd::Function<GatedUnit<Kernels>> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    const Tensor g = gate.contiguous(), u = up.contiguous();
    Tensor out = torch::empty_like(g);
    by_type(out, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, out.numel(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
        Kernels::template forward<T>(end - begin, data<T>(g) + begin, data<T>(u) + begin, data<T>(out) + begin);
      });
    });
    ctx->save_for_backward({g, u});
    return out;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor dy = grads[0].contiguous();
    Tensor dgate = torch::empty_like(saved[0]), dup = torch::empty_like(saved[1]);
    by_type(dy, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, dy.numel(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
        Kernels::template backward<T>(end - begin, data<T>(saved[0]) + begin, data<T>(saved[1]) + begin, data<T>(dy) + begin,
                                  data<T>(dgate) + begin, data<T>(dup) + begin);
      });
    });
    return {dgate, dup};
  }
};

class ScaleColumns : public torch::autograd::Function<ScaleColumns> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& factor) {
    const Tensor input = y.contiguous();
    Tensor out = torch::empty_like(input);
    const std::int64_t rows = input.size(0), n = input.size(1);
    by_type(out, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, rows, 16, [&](std::int64_t begin, std::int64_t end) {
        fused::scale_forward<T>(end - begin, n, data<T>(input) + begin * n, data<float>(factor), data<T>(out) + begin * n);
      });
    });
    ctx->save_for_backward({input, factor});
    return out;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &y = saved[0], &factor = saved[1], dout = grads[0].contiguous();
    const std::int64_t rows = y.size(0), n = y.size(1), blocks = (rows + kSumBlock - 1) / kSumBlock;
    Tensor dy = torch::empty_like(y), sums = torch::zeros({blocks, n}, factor.options());
    by_type(y, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, blocks, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t block = first; block < last; ++block) {
          const std::int64_t begin = block * kSumBlock, count = std::min(kSumBlock, rows - begin);
          fused::scale_backward<T>(count, n, data<T>(y) + begin * n, data<float>(factor), data<T>(dout) + begin * n,
                                   data<T>(dy) + begin * n, data<float>(sums) + block * n);
        }
      });
    });
    return {dy, sums.sum(0)};
  }
};

class Rotate : public torch::autograd::Function<Rotate> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return apply_rotation(x.contiguous(), cos, sin, false);
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {apply_rotation(grads[0].contiguous(), saved[0], saved[1], true), Tensor(), Tensor()};
  }

 private:
  static Tensor apply_rotation(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) {
    const std::int64_t batch = x.size(0), dim = x.size(3);
    const std::int64_t heads = x.size(inverse ? 1 : 2), length = x.size(inverse ? 2 : 1);
    Tensor out = torch::empty({batch, x.size(2), x.size(1), dim}, x.options());
    by_type(x, [&](auto tag) {
      using T = decltype(tag);
      at::parallel_for(0, batch, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t offset = i * length * heads * dim;
          fused::rotate<T>(length, heads, dim, data<float>(cos), data<float>(sin), inverse, data<T>(x) + offset,
                           data<T>(out) + offset);
        }
      });
    });
    return out;
  }
};

/// Queries of one causal block see keys up to the block's end; what lies beyond is never computed. A GPU has the
/// arithmetic to spare and not the launches.
std::int64_t query_block(const Tensor& query) { return query.is_cpu() ? 128 : 1024; }

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& gain, double eps, torch::ScalarType out_type) {
  if (x.is_cpu()) return RmsNorm::apply(x, gain.contiguous(), eps, out_type);
  return (x * torch::rsqrt(x.square().mean(-1, true) + eps) * gain).to(out_type);
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  if (gate.is_cpu()) return GatedUnit<Swi>::apply(gate, up);
  return torch::silu(gate) * up;
}

Tensor geglu(const Tensor& gate, const Tensor& up) {
  if (gate.is_cpu()) return GatedUnit<Ge>::apply(gate, up);
  return torch::gelu(gate, "tanh") * up;
}

Tensor scale_columns(const Tensor& y, const Tensor& factor) {
  if (y.is_cpu()) return ScaleColumns::apply(y, factor.contiguous());
  return (y.to(torch::kFloat32) * factor).to(y.scalar_type());
}

Tensor rotate_heads(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  if (x.is_cpu()) return Rotate::apply(x, cos.contiguous(), sin.contiguous());
  const auto f = x.to(torch::kFloat32).transpose(1, 2);
  const auto halves = f.chunk(2, -1);
  return torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1).to(x.scalar_type());
}

Tensor causal_attention(const Tensor& query, const Tensor& key, const Tensor& value, double scale, std::int64_t window) {
  const std::int64_t batch = query.size(0), heads = query.size(1), length = query.size(2), dim = query.size(3);
  const std::int64_t kv_heads = key.size(1), keys = key.size(2), groups = heads / kv_heads;
  const std::int64_t past = keys - length;
  // The first key that the query at a position sees.
  const auto first_key = [&](std::int64_t position) {
    return window > 0 ? std::max<std::int64_t>(position + 1 - window, 0) : 0;
  };
  const auto q = (query * scale).view({batch * kv_heads, groups, length, dim});
  const auto k = key.reshape({batch * kv_heads, keys, dim});
  const auto v = value.reshape({batch * kv_heads, keys, dim});
  std::vector<Tensor> blocks;
  const std::int64_t block = query_block(query);
  for (std::int64_t begin = 0; begin < length; begin += block) {
    const std::int64_t count = std::min(block, length - begin), end = past + begin + count;
    const std::int64_t first = first_key(past + begin), seen = end - first;
    auto scores = torch::bmm(q.narrow(2, begin, count).reshape({batch * kv_heads, groups * count, dim}),
                             k.narrow(1, first, seen).transpose(1, 2));
    const auto by_query = scores.view({batch * kv_heads, groups, count, seen});
    const auto barred = [&](std::int64_t columns) {
      return torch::full({count, columns}, -std::numeric_limits<double>::infinity(), scores.options());
    };
    if (count > 1) by_query.narrow(3, seen - count, count).add_(barred(count).triu(1));
    // Query i of the block does not see keys up to `window` before its own.
    if (first_key(end - 1) > first) by_query.add_(barred(seen).tril(past + begin - window - first));
    blocks.push_back(torch::bmm(torch::softmax(scores, -1), v.narrow(1, first, seen)).view({batch, heads, count, dim}));
  }
  const auto out = blocks.size() == 1 ? blocks[0] : torch::cat(blocks, 2);
  return out.transpose(1, 2).reshape({batch * length, heads * dim});
}

double kl_rows_with_gradient(Tensor& student_logits, const Tensor& teacher_logits) {
  torch::NoGradGuard no_grad;
  if (!student_logits.is_cpu()) {
    const auto log_s = torch::log_softmax(student_logits, -1), log_t = torch::log_softmax(teacher_logits, -1);
    const auto p_t = log_t.exp();
    const auto kl = (p_t * (log_t - log_s)).sum(torch::kFloat64);
    student_logits.copy_(log_s.exp() - p_t);
    return kl.item<double>();
  }
  const std::int64_t rows = student_logits.size(0), vocab = student_logits.size(1);
  std::vector<double> kl(static_cast<std::size_t>(rows));
  at::parallel_for(0, rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      kl[static_cast<std::size_t>(row)] =
          fused::kl_row(vocab, data<float>(student_logits) + row * vocab, data<float>(teacher_logits) + row * vocab);
    }
  });
  double sum = 0;
  for (const double value : kl) sum += value;
  return sum;
}

}  // namespace spear
