// Whole models: what each module was quantized on, in what order, behind which compensators.
#include "quant/model_quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>

#include "torch/chunked_ops.h"
#include "torch/tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_model;
using testing::RandomModelOptions;
using torch::Tensor;

constexpr std::int64_t kVocabulary = 61;

ModelWeights dense_model() {
  RandomModelOptions options;
  options.packed = false;
  return random_model(options);
}

TorchModel dense() { return TorchModel(dense_model(), torch::kCPU, torch::kFloat32); }

Tensor tokens_of(const TorchModel& model, std::uint64_t seed, std::int64_t sequences = 16) {
  return model.token_tensor({testing::random_tokens(sequences * 24, kVocabulary, seed), sequences, 24});
}

/// Plain GPTQ: nothing absorbed, no weights, no polish.
QuantizeOptions plain_gptq() {
  QuantizeOptions options;
  options.quantizer = Quantizer::gptq;
  options.alpha = options.rho = 0;
  options.outlier_cap = std::numeric_limits<double>::infinity();
  options.sweeps = 0;
  return options;
}

/// Inputs of every module in a forward pass of the model as it is.
std::map<int, Tensor> inputs_of(TorchModel& model, const Tensor& tokens) {
  torch::NoGradGuard no_grad;
  std::map<int, Tensor> out;
  model.on_linear = [&](ModuleId id, const Tensor& x, Tensor&) { out[id.index] = x; };
  model.hidden(tokens);
  model.on_linear = nullptr;
  return out;
}

Tensor moment(const Tensor& x) { return torch::matmul(x.t(), x) / static_cast<double>(x.size(0)); }

double share_equal(const Tensor& a, const Tensor& b) { return (a == b).to(torch::kFloat64).mean().item<double>(); }

/// How far the model's final states are from the reference's on other tokens than it was quantized on.
double damage(TorchModel& model) {
  torch::NoGradGuard no_grad;
  TorchModel reference = dense();
  const auto tokens = tokens_of(model, 77);
  return distance(model.hidden(tokens), reference.hidden(tokens));
}

std::vector<CompensatorSite> sites_with(std::int64_t rank, std::int64_t gate_rows = 0) {
  const auto config = dense_model().config;
  std::vector<CompensatorSite> sites;
  for (int i = 0; i < module_count(config); ++i) {
    if (ModuleId{i}.input_group() == ModuleId{i}) sites.push_back({{}, rank, gate_rows});
    sites.back().members.push_back(ModuleId{i});
  }
  return sites;
}

TEST(ModelQuantizerTest, RoundingNeedsNoTokensAndLeavesItsResultInTheSlots) {
  TorchModel model = dense(), reference = dense();
  const auto out = quantize_model(model, {}, {}, {});
  ASSERT_EQ(out.linears.size(), 14U);
  for (int i = 0; i < 14; ++i) {
    const auto expected = quantize_rtn(reference.linear({i}).weight, {});
    EXPECT_TRUE(out.linears[static_cast<std::size_t>(i)].codes.equal(expected.codes));
    EXPECT_TRUE(model.linear({i}).weight.equal(expected.dequantize()));
  }
}

TEST(ModelQuantizerTest, LayersThatAreLoadedInTurnGiveTheSameAndAreGoneBehind) {
  const ModelWeights weights = dense_model();
  for (const Quantizer quantizer : {Quantizer::rtn, Quantizer::clip, Quantizer::gptq}) {
    TorchModel whole = dense(), empty(weights, torch::kCPU, torch::kFloat32, Linears::empty);
    QuantizeOptions options;
    options.quantizer = quantizer;
    const auto sites = quantizer == Quantizer::rtn ? std::vector<CompensatorSite>{} : sites_with(2);
    const auto tokens = tokens_of(whole, 5);
    const auto expected = quantize_model(whole, options, sites, tokens);
    options.source = &weights;
    const auto out = quantize_model(empty, options, sites, tokens);
    for (std::size_t i = 0; i < 14; ++i) {
      EXPECT_TRUE(out.linears[i].codes.equal(expected.linears[i].codes)) << i;
      EXPECT_TRUE(out.linears[i].scales.equal(expected.linears[i].scales)) << i;
      EXPECT_FALSE(empty.linear({static_cast<int>(i)}).weight.defined()) << i;
    }
    for (std::size_t i = 0; i < sites.size(); ++i) EXPECT_TRUE(out.factors[i].a.equal(expected.factors[i].a)) << i;
  }
}

TEST(ModelQuantizerTest, EveryModuleSeesTheQuantizedPrefix) {
  for (const char* scheme : {"w4-channel-sym", "w4-g32-asym"}) {
    TorchModel model = dense(), reference = dense();
    auto options = plain_gptq();
    options.scheme = parse_scheme(scheme);
    const auto tokens = tokens_of(model, 1);
    const auto out = quantize_model(model, options, {}, tokens);
    // A module's input depends on earlier modules only, so the finished model shows what the quantizer saw.
    const auto seen = inputs_of(model, tokens), ideal = inputs_of(reference, tokens);
    double equal = 0, equal_to_ideal = 0;
    for (int i = 0; i < 14; ++i) {
      const auto& weight = reference.linear({i}).weight;
      const auto codes_on = [&](const Tensor& x) {
        const auto h = damped(moment(x), options.damping);
        return quantize_gptq(weight, h, quantize_clip(weight, options.scheme, h.diagonal())).codes;
      };
      const auto& codes = out.linears[static_cast<std::size_t>(i)].codes;
      ASSERT_EQ(codes.sizes(), weight.sizes());
      EXPECT_TRUE(model.linear({i}).weight.equal(out.linears[static_cast<std::size_t>(i)].dequantize()));
      EXPECT_TRUE(out.targets[static_cast<std::size_t>(i)].equal(weight));
      equal += share_equal(codes, codes_on(seen.at(i))) / 14;
      equal_to_ideal += share_equal(codes, codes_on(ideal.at(i))) / 14;
    }
    EXPECT_GT(equal, 0.998) << scheme;  // sums in another order may flip a tie
    EXPECT_LT(equal_to_ideal, 0.98) << scheme;
  }
}

TEST(ModelQuantizerTest, TheChainBeatsGptqBeatsClipBeatsRounding) {
  std::map<std::string, double> left;
  for (const auto& [name, change] : std::map<std::string, std::function<void(QuantizeOptions&)>>{
           {"rtn", [](auto& o) { o.quantizer = Quantizer::rtn; }},
           {"clip", [](auto& o) { o.quantizer = Quantizer::clip; }},
           {"gptq", [](auto& o) { o = plain_gptq(); }},
           {"chain", [](auto& o) { o.quantizer = Quantizer::gptq; }}}) {
    TorchModel model = dense();
    QuantizeOptions options;
    change(options);
    quantize_model(model, options, {}, tokens_of(model, 2, 64));
    left[name] = damage(model);
  }
  EXPECT_LT(left["clip"], left["rtn"]);
  EXPECT_LT(left["gptq"], left["clip"]);
  EXPECT_LT(left["chain"], left["gptq"]);
}

TEST(ModelQuantizerTest, StreamErrorIsAbsorbedOnlyWhereOutputsReachTheStreamUnnormalized) {
  for (const bool every_option : {false, true}) {  // every_option: with norms of outputs
    RandomModelOptions shape;
    shape.packed = false;
    shape.every_option = every_option;
    const auto chain = [&](double rho) {
      TorchModel model(random_model(shape), torch::kCPU, torch::kFloat32);
      QuantizeOptions options;
      options.quantizer = Quantizer::gptq;
      options.rho = rho;
      return quantize_model(model, options, {}, tokens_of(model, 3)).linears;
    };
    const auto with = chain(0.6), without = chain(0.0);
    bool same = true;
    for (std::size_t i = 0; i < with.size(); ++i) same = same && torch::equal(with[i].dequantize(), without[i].dequantize());
    EXPECT_EQ(same, every_option);
  }
}

TEST(ModelQuantizerTest, CompensatorsTakeTheLeadingErrorAndWhatFollowsSitsBehindThem) {
  TorchModel bare = dense(), model = dense();
  QuantizeOptions options;
  options.quantizer = Quantizer::gptq;
  const auto tokens = tokens_of(model, 3, 64);
  quantize_model(bare, options, {}, tokens);
  const auto sites = sites_with(6);
  const auto out = quantize_model(model, options, sites, tokens);
  EXPECT_LT(damage(model), 0.8 * damage(bare));
  ASSERT_EQ(out.factors.size(), sites.size());
  const auto seen = inputs_of(model, tokens);
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const auto& f = out.factors[i];
    const auto& x = seen.at(sites[i].members.front().index);
    ASSERT_EQ(f.a.sizes(), (torch::IntArrayRef{6, x.size(1)}));
    ASSERT_EQ(f.b.size(), sites[i].members.size());
    for (std::size_t m = 0; m < f.b.size(); ++m) {
      const auto& slot = model.linear(sites[i].members[m]);
      EXPECT_EQ(f.b[m].sizes(), (torch::IntArrayRef{slot.weight.size(0), 6}));
      ASSERT_TRUE(slot.compensator);
      EXPECT_TRUE(slot.compensator->a.is_same(f.a));
    }
    // The spectrum falls and is that of the whole error.
    const auto& values = out.singular_values[i];
    EXPECT_TRUE(std::is_sorted(values.rbegin(), values.rend()));
    std::int64_t stacked = 0;
    for (const auto& b : f.b) stacked += b.size(0);
    EXPECT_EQ(static_cast<std::int64_t>(values.size()), std::min(stacked, x.size(1)));
  }
}

TEST(ModelQuantizerTest, RowsForTheGateAreNoPartOfTheCorrection) {
  TorchModel plain = dense(), gated = dense();
  QuantizeOptions options;
  options.quantizer = Quantizer::gptq;
  const auto tokens = tokens_of(plain, 8);
  const auto expected = quantize_model(plain, options, sites_with(3), tokens);
  const auto out = quantize_model(gated, options, sites_with(3, 2), tokens);
  // Sums of another width may round another way and flip a tie.
  for (std::size_t i = 0; i < 14; ++i) EXPECT_GT(share_equal(out.linears[i].codes, expected.linears[i].codes), 0.995);
  for (std::size_t i = 0; i < out.factors.size(); ++i) {
    EXPECT_EQ(out.factors[i].a.size(0), 5);
    EXPECT_EQ(out.factors[i].sigma.size(0), 5);
    for (const auto& b : out.factors[i].b) EXPECT_EQ(b.size(1), 3);
  }
}

TEST(ModelQuantizerTest, ClosedFormOnFrozenLinearsUsesTheReferencesInputs) {
  TorchModel model = dense(), reference = dense();
  std::vector<QuantizedLinear> given;
  for (int i = 0; i < 14; ++i)
    given.push_back(
        quantize_clip(reference.linear({i}).weight, {}, torch::ones({reference.linear({i}).weight.size(1)})));
  QuantizeOptions options;
  options.given = &given;
  const auto tokens = tokens_of(model, 4);
  const auto sites = sites_with(3);
  const auto out = quantize_model(model, options, sites, tokens);
  const auto inputs = inputs_of(reference, tokens);
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const auto& x = inputs.at(sites[i].members.front().index);
    std::vector<Tensor> errors, b;
    for (std::size_t m = 0; m < sites[i].members.size(); ++m) {
      const auto index = sites[i].members[m];
      errors.push_back(reference.linear(index).weight - given[static_cast<std::size_t>(index.index)].dequantize());
      EXPECT_TRUE(out.linears[static_cast<std::size_t>(index.index)].codes.equal(
          given[static_cast<std::size_t>(index.index)].codes));
    }
    const auto expected = whitened_factors(torch::cat(errors), damped(moment(x), options.damping), 3, Whitening::exact);
    const auto product = torch::matmul(torch::cat(out.factors[i].b), out.factors[i].a);
    EXPECT_LT(distance(product, torch::matmul(expected.b, expected.a)), 1e-3);
    EXPECT_LT(distance(out.factors[i].sigma, torch::matmul(x, out.factors[i].a.t()).square().mean(0).sqrt()), 1e-4);
  }
  EXPECT_LT(damage(model), [&] {
    TorchModel bare = dense();
    for (int i = 0; i < 14; ++i) bare.linear({i}).weight = given[static_cast<std::size_t>(i)].dequantize();
    return damage(bare);
  }());
}

TEST(ModelQuantizerTest, ZeroRowsMeasureTheSpectrumAndChangeNothing) {
  TorchModel model = dense(), bare = dense();
  const auto tokens = tokens_of(model, 5);
  QuantizeOptions options;
  options.quantizer = Quantizer::gptq;
  const auto out = quantize_model(model, options, sites_with(0), tokens);
  const auto expected = quantize_model(bare, options, {}, tokens);
  for (std::size_t i = 0; i < 14; ++i) EXPECT_TRUE(out.linears[i].codes.equal(expected.linears[i].codes));
  for (const auto& values : out.singular_values) EXPECT_FALSE(values.empty());
  for (const auto& factors : out.factors) EXPECT_FALSE(factors.a.defined());
}

TEST(ModelQuantizerTest, OutlierTokensAreHeldDown) {
  // Weights min(1, cap · median / n) by the reference's inputs, and its stream for what writes to the stream.
  TorchModel model = dense(), reference = dense();
  auto options = plain_gptq();
  options.outlier_cap = 0.6;
  const auto tokens = tokens_of(model, 6);
  const auto out = quantize_model(model, options, {}, tokens);
  torch::NoGradGuard no_grad;
  std::map<int, Tensor> stream;  // in front of o_proj and down_proj
  stream[3] = reference.stream_before(tokens, 0).residual;
  ChunkedOps ops(reference);
  ops.on_value = [&](const char* name, std::int64_t layer, const ChunkedOps::Activation& value) {
    if (std::string_view(name) == "post_attention") stream[static_cast<int>(layer) * 7 + 6] = torch::cat(value);
    if (std::string_view(name) == "layer") stream[static_cast<int>(layer) * 7 + 10] = torch::cat(value);
  };
  auto batch = ChunkedOps::batch(tokens);
  decoder_layers(ops, reference.config(), 0, reference.config().num_hidden_layers, ops.embed(batch, NormId::input(0)), batch);
  const auto seen = inputs_of(model, tokens), ideal = inputs_of(reference, tokens);
  const auto weights_by = [](const Tensor& rows) {
    const auto n = rows.square().sum(1, true);
    return (0.6 * n.median() / n).clamp_max(1);
  };
  double equal = 0, equal_without = 0;
  for (int i = 0; i < 14; ++i) {
    auto weights = weights_by(ideal.at(i));
    if (stream.contains(i)) weights = weights * weights_by(stream.at(i));
    const auto& x = seen.at(i);
    const auto& weight = reference.linear({i}).weight;
    const auto codes_on = [&](const Tensor& hessian) {
      const auto h = damped(hessian, options.damping);
      return quantize_gptq(weight, h, quantize_clip(weight, {}, h.diagonal())).codes;
    };
    const auto& codes = out.linears[static_cast<std::size_t>(i)].codes;
    equal += share_equal(codes, codes_on(torch::matmul((x * weights).t(), x) / static_cast<double>(x.size(0)))) / 14;
    equal_without += share_equal(codes, codes_on(moment(x))) / 14;
  }
  EXPECT_GT(equal, 0.998);
  EXPECT_LT(equal_without, 0.98);
}

}  // namespace
}  // namespace spear
