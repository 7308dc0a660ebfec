// Every fused operation against the same formula composed of tensor operations in float64, value and gradients.
#include "torch/fused_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "torch/tensors.h"
#include "torch/torch_model.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;
using torch::Tensor;

using Function = std::function<Tensor(const std::vector<Tensor>&)>;

constexpr double kFloat32 = 2e-6;
constexpr double kBFloat16 = 1.0 / 128;  // one rounding is at most 2⁻⁹ of a value

/// Largest relative distance of value and of every gradient between f on `inputs` and g on them in float64, under the
/// scalar Σ out ⊙ direction.
double largest_difference(const Function& f, const Function& g, const std::vector<Tensor>& inputs) {
  std::vector<Tensor> narrow, wide;
  for (const auto& input : inputs) {
    narrow.push_back(input.detach().clone().set_requires_grad(true));
    wide.push_back(input.detach().to(torch::kFloat64).set_requires_grad(true));
  }
  const auto out = f(narrow), expected = g(wide);
  double worst = distance(out, expected);
  const auto direction = random_tensor(expected.sizes().vec(), 99).to(out.scalar_type());
  out.backward(direction);
  expected.backward(direction.to(torch::kFloat64));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(narrow[i].grad().defined()) << "input " << i;
    if (narrow[i].grad().defined()) worst = std::max(worst, distance(narrow[i].grad(), wide[i].grad()));
  }
  return worst;
}

Tensor composed_norm(const Tensor& x, const Tensor& gain, double eps) {
  return x / (x.square().mean(-1, true) + eps).sqrt() * gain;
}

TEST(FusedOpsTest, RmsNorm) {
  // More rows than a block of partial sums (256), a width that is no multiple of the lanes.
  for (const std::int64_t rows : {1, 5, 600}) {
    for (const std::int64_t width : {1, 16, 37}) {
      const std::vector<Tensor> inputs = {random_tensor({rows, width}, 1), random_tensor({width}, 2)};
      for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
        const auto fused = [&](const auto& in) { return rms_norm(in[0], in[1], 1e-3, type); };
        const auto composed = [](const auto& in) { return composed_norm(in[0], in[1], 1e-3); };
        EXPECT_LT(largest_difference(fused, composed, inputs), type == torch::kFloat32 ? 1e-5 : kBFloat16)
            << rows << " x " << width;
      }
    }
  }
}

TEST(FusedOpsTest, SwiGlu) {
  const auto composed = [](const auto& in) { return in[0] * torch::sigmoid(in[0]) * in[1]; };
  const auto fused = [](const auto& in) { return swiglu(in[0], in[1]); };
  // Wide enough that silu saturates at both ends.
  const std::vector<Tensor> inputs = {random_tensor({301, 67}, 3, 12.0), random_tensor({301, 67}, 4)};
  EXPECT_LT(largest_difference(fused, composed, inputs), kFloat32);
  EXPECT_LT(largest_difference(fused, composed, {inputs[0].to(torch::kBFloat16), inputs[1].to(torch::kBFloat16)}),
            kBFloat16);
  const std::vector<Tensor> transposed = {inputs[0].t(), inputs[1].t()};
  EXPECT_LT(distance(swiglu(transposed[0], transposed[1]), composed(inputs).t()), kFloat32) << "not contiguous";
}

TEST(FusedOpsTest, GeGlu) {
  const auto composed = [](const auto& in) {
    const auto& x = in[0];
    return 0.5 * x * (1 + torch::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) * in[1];
  };
  const auto fused = [](const auto& in) { return geglu(in[0], in[1]); };
  const std::vector<Tensor> inputs = {random_tensor({301, 67}, 3, 3.0), random_tensor({301, 67}, 4)};
  EXPECT_LT(largest_difference(fused, composed, inputs), kFloat32);
  EXPECT_LT(largest_difference(fused, composed, {inputs[0].to(torch::kBFloat16), inputs[1].to(torch::kBFloat16)}),
            kBFloat16);
}

TEST(FusedOpsTest, ScaleColumnsRoundsOnce) {
  const std::vector<Tensor> inputs = {random_tensor({300, 21}, 5), random_tensor({21}, 6)};
  const auto composed = [](const auto& in) { return in[0] * in[1]; };
  const auto fused = [](const auto& in) { return scale_columns(in[0], in[1]); };
  EXPECT_LT(largest_difference(fused, composed, inputs), kFloat32);
  const auto narrow = inputs[0].to(torch::kBFloat16);
  EXPECT_LT(largest_difference(fused, composed, {narrow, inputs[1]}), kBFloat16);
  EXPECT_TRUE(scale_columns(narrow, inputs[1]).equal((narrow.to(torch::kFloat32) * inputs[1]).to(torch::kBFloat16)));
}

TEST(FusedOpsTest, RotateHeads) {
  const std::int64_t batch = 2, length = 9, heads = 3, half = 5;
  const auto angle = random_tensor({length, half}, 7, 3.0);
  const auto cos = angle.cos(), sin = angle.sin();
  const auto fused = [&](const auto& in) { return rotate_heads(in[0], cos, sin); };
  // Pairs (i, i + half) as complex numbers times e^{i angle}.
  const auto composed = [&](const auto& in) {
    const auto x = in[0].transpose(1, 2);
    const auto turned = torch::complex(x.narrow(-1, 0, half).contiguous(), x.narrow(-1, half, half).contiguous()) *
                        torch::complex(cos.to(torch::kFloat64), sin.to(torch::kFloat64));
    return torch::cat({torch::real(turned), torch::imag(turned)}, -1);
  };
  const auto x = random_tensor({batch, length, heads, 2 * half}, 8);
  EXPECT_LT(largest_difference(fused, composed, {x}), kFloat32);
  EXPECT_LT(largest_difference(fused, composed, {x.to(torch::kBFloat16)}), kBFloat16);
  // Position matters: the same vector at two positions comes out differently turned but as long as it was.
  const auto out = rotate_heads(torch::ones({1, length, 1, 2 * half}), cos, sin);
  EXPECT_GT(distance(out[0][0][1], out[0][0][0]), 0.1);
  EXPECT_LT(distance(out.norm(2, -1), torch::full({1, 1, length}, std::sqrt(10.0))), kFloat32);
}

/// Attention by the definition: one softmax over all keys, future ones at minus infinity.
Tensor composed_attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, std::int64_t window = 0) {
  const std::int64_t groups = q.size(1) / k.size(1), length = q.size(2), keys = k.size(2);
  const auto kk = k.repeat_interleave(groups, 1), vv = v.repeat_interleave(groups, 1);
  auto scores = torch::matmul(q, kk.transpose(-1, -2)) * scale;
  auto future = torch::ones({length, keys}, torch::kBool).triu(keys - length + 1);
  if (window > 0) future = future | torch::ones({length, keys}, torch::kBool).tril(keys - length - window);
  scores = scores.masked_fill(future, -std::numeric_limits<double>::infinity());
  return torch::matmul(torch::softmax(scores, -1), vv).transpose(1, 2).reshape({q.size(0) * length, -1});
}

TEST(FusedOpsTest, CausalAttention) {
  struct Case {
    std::int64_t heads, kv_heads, length, keys, window = 0;
  };
  // One block, several blocks with a rest, one query behind a cache, a chunk behind a cache.
  for (const Case c : {Case{4, 2, 19, 19}, Case{3, 3, 290, 290}, Case{6, 2, 1, 33}, Case{2, 1, 150, 170},
                       Case{4, 2, 19, 19, 5}, Case{3, 3, 290, 290, 1}, Case{2, 1, 290, 290, 40}, Case{2, 2, 290, 290, 140},
                       Case{6, 2, 1, 33, 7}, Case{2, 1, 150, 170, 10}, Case{2, 1, 150, 170, 165}, Case{2, 1, 9, 9, 9}}) {
    const auto fused = [&](const auto& in) { return causal_attention(in[0], in[1], in[2], 0.3, c.window); };
    const auto composed = [&](const auto& in) { return composed_attention(in[0], in[1], in[2], 0.3, c.window); };
    const std::vector<Tensor> inputs = {random_tensor({2, c.heads, c.length, 8}, 9, 2.0),
                                        random_tensor({2, c.kv_heads, c.keys, 8}, 10, 2.0),
                                        random_tensor({2, c.kv_heads, c.keys, 8}, 11)};
    EXPECT_LT(largest_difference(fused, composed, inputs), 5e-6)
        << c.heads << " heads, " << c.length << " queries, window " << c.window;
  }
}

TEST(FusedOpsTest, AttentionOfOnePositionSeesNothingBehindTheKeys) {
  torch::NoGradGuard no_grad;
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    for (const std::int64_t keys : {1, 15, 16, 33}) {
      const auto query = random_tensor({3, 6, 1, 20}, 14, 2.0).to(type);
      // A cache of 40 positions; what lies behind `keys` is poison.
      auto cache_k = random_tensor({3, 2, 40, 20}, 15, 2.0).to(type), cache_v = random_tensor({3, 2, 40, 20}, 16).to(type);
      cache_k.narrow(2, keys, 40 - keys).fill_(NAN);
      cache_v.narrow(2, keys, 40 - keys).fill_(NAN);
      const auto k = cache_k.narrow(2, 0, keys), v = cache_v.narrow(2, 0, keys);
      for (const std::int64_t window : {0, 1, 15}) {
        const auto expected = composed_attention(query.to(torch::kFloat64), k.to(torch::kFloat64), v.to(torch::kFloat64),
                                                 0.25, window);
        const auto got = causal_attention(query, k, v, 0.25, window);
        EXPECT_EQ(got.scalar_type(), type);
        EXPECT_LT(distance(got.to(torch::kFloat64), expected), type == torch::kFloat32 ? 5e-6 : kBFloat16) << keys;
      }
    }
  }
}

TEST(FusedOpsTest, KlOfRowsAndItsGradient) {
  for (const std::int64_t vocab : {3, 16, 1000}) {
    const auto teacher = random_tensor({7, vocab}, 12, 3.0), student = teacher + random_tensor({7, vocab}, 13, 0.5);
    const auto wide = student.to(torch::kFloat64).set_requires_grad(true);
    const auto log_t = torch::log_softmax(teacher.to(torch::kFloat64), -1);
    const auto kl = (log_t.exp() * (log_t - torch::log_softmax(wide, -1))).sum();
    kl.backward();
    auto logits = student.clone();
    EXPECT_NEAR(kl_rows_with_gradient(logits, teacher), kl.item<double>(), 1e-5 * kl.item<double>() + 1e-6);
    EXPECT_LT(distance(logits, wide.grad()), 1e-5);
    auto same = teacher.clone();
    EXPECT_NEAR(kl_rows_with_gradient(same, teacher), 0, 7e-6);
    EXPECT_LT(same.abs().max().item<double>(), 1e-6);
  }
  // Far apart: the KL is the teacher's log-probability at the student's tail, not infinity.
  auto far = torch::tensor({{60.0F, 0.0F}});
  EXPECT_NEAR(kl_rows_with_gradient(far, torch::tensor({{0.0F, 60.0F}})), 60, 1e-4);
}

TEST(CompensatorGradientTest, FiniteDifferencesInEveryPart) {
  const std::int64_t rank = 3, gate_rows = 2, hidden = 4, in = 7, out = 5;
  const auto part = [](std::vector<std::int64_t> shape, std::uint64_t seed) {
    return random_tensor(std::move(shape), seed, 0.5).to(torch::kFloat64).set_requires_grad(true);
  };
  TorchCompensator c{
      part({rank + gate_rows, in}, 1), part({out, rank}, 2), part({hidden, rank + gate_rows}, 3), part({hidden}, 4),
      part({rank, hidden}, 5),         part({rank}, 6)};
  auto x = part({6, in}, 7);
  const auto direction = random_tensor({6, out}, 8).to(torch::kFloat64);
  const auto loss = [&] { return (c.correction(torch::linear(x, c.a), torch::kFloat64) * direction).sum(); };
  loss().backward();
  for (Tensor* parameter : {&c.a, &c.b, &c.w1, &c.b1, &c.w2, &c.b2, &x}) {
    const auto gradient = parameter->grad().flatten();
    torch::NoGradGuard no_grad;
    auto values = parameter->view({-1});
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      const double kept = values[i].item<double>(), h = 1e-5;
      values[i] = kept + h;
      const double above = loss().item<double>();
      values[i] = kept - h;
      const double below = loss().item<double>();
      values[i] = kept;
      EXPECT_NEAR(gradient[i].item<double>(), (above - below) / (2 * h), 1e-7 * (1 + std::fabs(above)));
    }
  }
  // The formula itself, and its special case: W2 = b2 = 0 is the static compensator exactly.
  const auto z = torch::linear(x, c.a), kept = z.narrow(1, 0, rank);
  const auto inner = torch::matmul(z, c.w1.t()) + c.b1;
  const auto g = 1 + torch::tanh(torch::matmul(inner * torch::sigmoid(inner), c.w2.t()) + c.b2);
  EXPECT_LT(distance(c.correction(z, torch::kFloat64), torch::matmul(g * kept, c.b.t())), 1e-14);
  c.w2 = torch::zeros_like(c.w2);
  c.b2 = torch::zeros_like(c.b2);
  const auto off = c.correction(z, torch::kFloat64);
  c.w1 = Tensor();
  EXPECT_TRUE(off.equal(c.correction(z, torch::kFloat64)));
}

}  // namespace
}  // namespace spear
