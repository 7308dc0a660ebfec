#include "quant/backbone_basis.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quant/quantized_linear.h"
#include "torch/tensors.h"
#include "torch/torch_model.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_floats;

ModelWeights dense_model() {
  testing::RandomModelOptions options;
  options.packed = false;
  options.hidden = 96;
  options.intermediate = 128;
  options.head_dim = 16;
  return testing::random_model(options);
}

/// e^(normal / 2) for every channel: what AWQ's search finds is as wide.
torch::Tensor factors(std::int64_t count, std::uint64_t seed) {
  return testing::random_tensor({count}, seed, 0.5).exp();
}

void change(LinearModule& module, const std::function<torch::Tensor(torch::Tensor)>& how) { module.weight = to_host(how(to_torch(module.weight))); }

/// The same function with factors moved between norms and linears, and between linears, as AWQ leaves it; not rounded yet.
ModelWeights moved(ModelWeights weights) {
  const ModelConfig& c = weights.config;
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const auto linear = [&](LinearKind kind) -> LinearModule& { return weights.linear(ModuleId::of(layer, kind)); };
    const auto seed = static_cast<std::uint64_t>(10 * layer);
    const auto before = [&](NormId norm, std::initializer_list<LinearKind> readers, const torch::Tensor& s) {
      weights.gain(norm) = to_host(to_torch(weights.gain(norm)) / s);
      for (const LinearKind kind : readers) change(linear(kind), [&](const torch::Tensor& w) { return w * s; });
    };
    before(NormId::input(layer), {LinearKind::q_proj, LinearKind::k_proj, LinearKind::v_proj}, factors(c.hidden_size, seed));
    before(NormId::post_attention(layer), {LinearKind::gate_proj, LinearKind::up_proj}, factors(c.hidden_size, seed + 1));
    const auto t = factors(c.kv_size(), seed + 2), u = factors(c.intermediate_size, seed + 3);
    change(linear(LinearKind::v_proj), [&](const torch::Tensor& w) { return w / t.unsqueeze(1); });
    const auto by_query = t.view({c.num_key_value_heads, 1, c.head_dim}).expand({-1, c.num_attention_heads / c.num_key_value_heads, -1});
    change(linear(LinearKind::o_proj), [&](const torch::Tensor& w) { return w * by_query.reshape({-1}); });
    change(linear(LinearKind::up_proj), [&](const torch::Tensor& w) { return w / u.unsqueeze(1); });
    change(linear(LinearKind::down_proj), [&](const torch::Tensor& w) { return w * u; });
  }
  return weights;
}

ModelWeights rounded(ModelWeights weights) {
  for (int i = 0; i < module_count(weights.config); ++i) {
    auto& module = weights.linear({i});
    module.weight = quantize_rtn(to_torch(module.weight), parse_scheme("w4-g32-sym")).pack();
  }
  return weights;
}

std::vector<float> states(const ModelWeights& weights) {
  TorchModel model(weights, torch::kCPU, torch::kFloat32);
  const auto tokens = testing::random_tokens(40, weights.config.vocab_size, 5);
  return model.hidden_states({tokens, 1, 40}, nullptr);
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  return distance(testing::as_tensor(a, {static_cast<std::int64_t>(a.size())}), testing::as_tensor(b, {static_cast<std::int64_t>(b.size())}));
}

TEST(BackboneBasis, FollowsFactorsThatAMethodMoved) {
  const ModelWeights reference = dense_model(), backbone = rounded(moved(reference));
  ASSERT_LT(difference(states(moved(reference)), states(reference)), 1e-5) << "the test itself keeps the function";
  const ModelWeights found = in_basis_of(reference, backbone);
  EXPECT_LT(difference(states(found), states(reference)), 1e-5) << "whatever was estimated, the function stays";
  double worst = 0, worst_before = 0;
  for (int i = 0; i < module_count(reference.config); ++i) {
    const auto given = to_torch(backbone.linear({i}).weight);
    worst = std::max(worst, distance(to_torch(found.linear({i}).weight), given));
    worst_before = std::max(worst_before, distance(to_torch(reference.linear({i}).weight), given));
  }
  EXPECT_LT(worst, 0.15) << "what is left is rounding";
  EXPECT_GT(worst_before, 0.4);
  for (const NormId id : norms_of(reference.config)) EXPECT_EQ(found.gain(id).to_floats(), backbone.gain(id).to_floats());
}

TEST(BackboneBasis, SharesWhatNeedsNoFactor) {
  const ModelWeights reference = dense_model(), found = in_basis_of(reference, rounded(reference));
  for (int i = 0; i < module_count(reference.config); ++i) {
    EXPECT_EQ(std::get<Tensor>(found.linear({i}).weight).bytes().data(), std::get<Tensor>(reference.linear({i}).weight).bytes().data()) << i;
  }
}

TEST(BackboneBasis, ChannelsWithoutAnyWeightMakeNoNan) {
  ModelWeights reference = dense_model();
  change(reference.linear(ModuleId::of(0, LinearKind::v_proj)), [](torch::Tensor w) { return w.narrow(0, 0, 3).zero_(), w; });
  auto gain = reference.gain(NormId::input(1)).to_floats();
  gain[7] = 0;
  ModelWeights backbone = moved(reference);
  backbone.gain(NormId::input(1)) = Tensor::from_floats({96}, gain);
  const ModelWeights found = in_basis_of(reference, rounded(backbone));
  for (int i = 0; i < module_count(found.config); ++i) {
    for (const float v : dequantize(found.linear({i}).weight)) ASSERT_TRUE(std::isfinite(v));
  }
}

}  // namespace
}  // namespace spear
