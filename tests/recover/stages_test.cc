// Diagnosis, placement and the inner loops of learned rounding, each by itself.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "recover/code_step.h"
#include "recover/diagnose.h"
#include "recover/place.h"
#include "recover/recipe.h"
#include "recover/train.h"
#include "torch/fused_ops.h"
#include "torch/tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;
using torch::Tensor;

// ---------------------------------------------------------------- diagnosis

/// Unbiased HSIC₁ from Gram matrices (Song et al. 2012, equation 4).
double gram_hsic(const Tensor& x, const Tensor& y) {
  const double n = static_cast<double>(x.size(0));
  auto k = torch::matmul(x, x.t()), l = torch::matmul(y, y.t());
  k.fill_diagonal_(0);
  l.fill_diagonal_(0);
  const double trace = (k * l).sum().item<double>();
  const double sums = k.sum().item<double>() * l.sum().item<double>() / ((n - 1) * (n - 2));
  const double mixed = torch::matmul(k, l).sum().item<double>() * 2 / (n - 2);
  return (trace + sums - mixed) / (n * (n - 3));
}

TEST(CkaTest, EqualsTheGramFormAndHasItsInvariances) {
  for (const std::int64_t n : {4, 9, 60}) {
    const auto x = random_tensor({n, 5}, 1).to(torch::kFloat64) + 3;
    const auto y = random_tensor({n, 7}, 2).to(torch::kFloat64) +
                   0.3 * torch::matmul(x, random_tensor({5, 7}, 3).to(torch::kFloat64));
    EXPECT_NEAR(debiased_cka(x, y), gram_hsic(x, y) / std::sqrt(gram_hsic(x, x) * gram_hsic(y, y)), 1e-10) << n;
    EXPECT_NEAR(debiased_cka(x, x), 1, 1e-12);
    const auto rotation = std::get<0>(torch::linalg_qr(random_tensor({7, 7}, 4).to(torch::kFloat64)));
    EXPECT_NEAR(debiased_cka(x, 2.5 * torch::matmul(y, rotation) - 11), debiased_cka(x, y), 1e-9);
    EXPECT_NEAR(debiased_cka(y, x), debiased_cka(x, y), 1e-12);
  }
  // Independent features: nought on average, where the biased estimator would say about 0.5.
  double mean = 0;
  for (std::uint64_t i = 0; i < 40; ++i)
    mean += debiased_cka(random_tensor({30, 20}, 10 + i), random_tensor({30, 20}, 60 + i)) / 40;
  EXPECT_NEAR(mean, 0, 0.05);
}

TEST(SpreadTest, OfKnownDistributions) {
  const auto even = damage_spread(std::vector<double>(8, 0.3), 0);
  EXPECT_NEAR(even.entropy, std::log(8), 1e-12);
  EXPECT_NEAR(even.normalized_entropy, 1, 1e-12);
  EXPECT_NEAR(even.effective_modules, 8, 1e-9);
  const auto one = damage_spread({0, 0.2, 0, 0}, 0);
  EXPECT_NEAR(one.entropy, 0, 1e-12);
  EXPECT_NEAR(one.effective_modules, 1, 1e-12);
  // The floor is taken off: 3/4 and 1/4 remain.
  const auto floored = damage_spread({0.4, 0.2, 0.1, 0.05}, 0.1);
  EXPECT_NEAR(floored.entropy, -0.75 * std::log(0.75) - 0.25 * std::log(0.25), 1e-12);
  EXPECT_EQ(damage_spread({0.01, 0.02}, 0.1).effective_modules, 0);
}

testing::RandomModelOptions dense_options() {
  testing::RandomModelOptions options;
  options.packed = false;
  return options;
}

TEST(DiagnoseTest, MeasuresEachModuleAloneAndPutsTheReferenceBack) {
  TorchModel model(testing::random_model(dense_options()), torch::kCPU, torch::kFloat32);
  std::vector<QuantizedLinear> quantized;
  std::vector<Tensor> reference;
  for (int i = 0; i < 14; ++i) {
    reference.push_back(model.linear({i}).weight);
    quantized.push_back(quantize_rtn(reference.back(), {}));
  }
  const DiagnoseOptions options{.sequences = 4, .length = 20, .restore_one = true, .delta_kl = true, .kl_tokens = 80};
  const auto tokens = model.token_tensor({testing::random_tokens(80, 61, 1), 4, 20});
  const Damage found = diagnose(model, quantized, tokens, options);

  const auto states = [&] { return model.hidden(tokens).to(torch::kFloat64); };
  const auto tail = [](const Tensor& h) { return h.view({4, 20, -1}).narrow(1, 1, 19).reshape({76, -1}); };
  const auto kl = [&](const Tensor& h, const Tensor& ideal) {
    const auto head = model.weights().head.to(torch::kFloat64);
    const auto log_s = torch::log_softmax(torch::matmul(h, head.t()), -1),
               log_t = torch::log_softmax(torch::matmul(ideal, head.t()), -1);
    return (log_t.exp() * (log_t - log_s)).sum().item<double>() / 80;
  };
  torch::NoGradGuard no_grad;
  const auto set_all = [&](bool quantize) {
    for (int i = 0; i < 14; ++i)
      model.linear({i}).weight =
          quantize ? quantized[static_cast<std::size_t>(i)].dequantize() : reference[static_cast<std::size_t>(i)];
  };
  for (int i = 0; i < 14; ++i) EXPECT_TRUE(model.linear({i}).weight.equal(reference[static_cast<std::size_t>(i)]));
  EXPECT_LT(found.noise_floor, 1e-6);
  const auto ideal = states();
  set_all(true);
  const auto worst = states();
  const double worst_damage = 1 - debiased_cka(tail(ideal), tail(worst)), worst_kl = kl(worst, ideal);
  for (int i = 0; i < 14; ++i) {
    const auto at = static_cast<std::size_t>(i);
    set_all(false);
    model.linear({i}).weight = quantized[at].dequantize();
    EXPECT_NEAR(found.cka[at], std::max(0.0, 1 - debiased_cka(tail(ideal), tail(states()))), 1e-6);
    EXPECT_NEAR(found.delta_kl[at], kl(states(), ideal), 1e-5);
    set_all(true);
    model.linear({i}).weight = reference[at];
    EXPECT_NEAR(found.restore_cka[at], worst_damage - 1 + debiased_cka(tail(ideal), tail(states())), 1e-6);
    EXPECT_NEAR(found.restore_kl[at], worst_kl - kl(states(), ideal), 1e-5);
  }
}

TEST(DiagnoseTest, FisherEstimateIsHalfTheMeanSquareOfTheLossesSlope) {
  TorchModel model(testing::random_model(dense_options()), torch::kCPU, torch::kFloat32);
  std::vector<QuantizedLinear> quantized;
  for (int i = 0; i < 14; ++i) quantized.push_back(quantize_rtn(model.linear({i}).weight, {}));
  const auto tokens = model.token_tensor({testing::random_tokens(24, 61, 2), 2, 12});
  const auto found = diagnose(model, quantized, tokens, {.sequences = 2, .length = 12}).fisher;
  // By hand for a few modules, the first included: y = W x + ε_t ΔW x for every token t apart.
  for (const int i : {0, 2, 6, 9, 13}) {
    const auto delta = quantized[static_cast<std::size_t>(i)].dequantize() - model.linear({i}).weight;
    Tensor epsilon;
    model.on_linear = [&](ModuleId id, const Tensor& x, Tensor& y) {
      if (id.index != i) return;
      epsilon = torch::zeros({x.size(0), 1}).set_requires_grad(true);
      y = y + epsilon * torch::matmul(x.detach(), delta.t());
    };
    const auto logits = model.logits(model.hidden(tokens)).view({2, 12, -1}).narrow(1, 0, 11);
    torch::nll_loss(torch::log_softmax(logits, -1).reshape({22, -1}), tokens.narrow(1, 1, 11).reshape({-1}), {},
                    at::Reduction::Sum)
        .backward();
    model.on_linear = nullptr;
    EXPECT_NEAR(found[static_cast<std::size_t>(i)], epsilon.grad().square().sum().item<double>() / (2 * 24),
                1e-3 * found[static_cast<std::size_t>(i)]);
  }
}

// ---------------------------------------------------------------- placement

std::vector<PlacementSite> random_sites(bool share_a) {
  auto sites = placement_sites(testing::random_model().config, share_a);
  Random random(9);
  for (auto& site : sites) {
    site.damage = random.uniform();
    double value = 1;
    for (std::int64_t i = 0; i < std::min(site.in_features, site.out_features); ++i) {
      site.singular_values.push_back(value *= 0.5 + 0.5 * random.uniform());
      site.energy += value * value;
    }
  }
  return sites;
}

std::int64_t placed_bytes(const std::vector<PlacementSite>& sites, const std::vector<CompensatorShape>& shapes) {
  std::int64_t bytes = 0;
  for (const auto& shape : shapes) {
    for (const auto& site : sites) {
      if (site.members == shape.members) bytes += site_bytes(site, shape.rank, shape.gate_hidden, shape.gate_rows);
    }
  }
  return bytes;
}

TEST(PlacementTest, SpendsTheBudgetAndNeverMore) {
  for (const bool share_a : {true, false}) {
    const auto sites = random_sites(share_a);
    ASSERT_EQ(sites.size(), share_a ? 8U : 14U);
    for (const auto placement : {Placement::damage, Placement::fisher, Placement::uniform, Placement::random, Placement::trained}) {
      for (const std::int64_t gate_hidden : {0, 3}) {
        for (const std::int64_t budget : {0, 50, 400, 1500, 4000}) {
          const PlacementOptions options{placement, budget, 16, gate_hidden, gate_hidden > 0 ? 2 : 0, 1};
          const auto shapes = place(sites, options);
          const std::int64_t used = placed_bytes(sites, shapes);
          EXPECT_LE(used, budget);
          EXPECT_EQ(shapes.empty(), used == 0);
          // What is left buys no further rank anywhere.
          if (budget >= 400) {
            EXPECT_GT(used, budget - 400) << name(placement) << " " << budget;
          }
          for (const auto& shape : shapes) EXPECT_LE(shape.rank, 16);
        }
      }
    }
  }
}

TEST(PlacementTest, TheFilesHeaderIsInsideTheBudgetAndSpaceIsUsed) {
  const auto sites = random_sites(true);
  for (const std::int64_t gate_hidden : {0, 3}) {
    for (const std::int64_t budget : {3000, 8000, 20000}) {
      PlacementOptions options{Placement::fisher, 0, 16, gate_hidden, 0, 1};
      const auto shapes = place_within_file(sites, options, budget);
      ASSERT_FALSE(shapes.empty());
      const std::int64_t used = placed_bytes(sites, shapes);
      EXPECT_LE(used, options.budget_bytes);
      EXPECT_LT(options.budget_bytes, budget);
      EXPECT_GE(options.budget_bytes, 3 * budget / 4 - 64);  // a header never takes more than a quarter
    }
  }
}

TEST(PlacementTest, DamageDecidesAndGreedyIsTheOptimum) {
  // Equal costs, so that the best integers can be found by trying all.
  auto sites = placement_sites(testing::random_model().config, false);
  sites.resize(3);
  for (auto& site : sites) site.in_features = site.out_features = 24;
  Random random(10);
  for (int trial = 0; trial < 30; ++trial) {
    for (auto& site : sites) {
      site.damage = random.uniform();
      site.singular_values.clear();
      site.energy = 0;
      double value = 1 + random.uniform();
      for (int i = 0; i < 24; ++i) {
        site.singular_values.push_back(value *= random.uniform());
        site.energy += value * value;
      }
    }
    const std::int64_t ranks = 7;
    const auto shapes = place(sites, {Placement::damage, ranks * site_bytes(sites[0], 1, 0, 0), 4, 0, 0, 0});
    const auto gain = [&](const std::array<std::int64_t, 3>& r) {
      double sum = 0;
      for (std::size_t i = 0; i < 3; ++i) {
        double total = 0, kept = 0;
        for (std::size_t j = 0; j < 24; ++j) {
          total += sites[i].singular_values[j] * sites[i].singular_values[j];
          if (static_cast<std::int64_t>(j) < r[i]) kept += sites[i].singular_values[j] * sites[i].singular_values[j];
        }
        sum += sites[i].damage * kept / total;
      }
      return sum;
    };
    std::array<std::int64_t, 3> found{};
    for (const auto& shape : shapes) found[static_cast<std::size_t>(shape.members[0].index)] = shape.rank;
    double best = 0;
    for (std::int64_t a = 0; a <= 4; ++a) {
      for (std::int64_t b = 0; b <= 4; ++b) {
        for (std::int64_t c = 0; c <= 4; ++c) {
          if (a + b + c <= ranks) best = std::max(best, gain({a, b, c}));
        }
      }
    }
    EXPECT_NEAR(gain(found), best, 1e-12);
  }
  sites[1].damage = 0;
  for (const auto& shape : place(sites, {Placement::damage, 1 << 20, 4, 0, 0, 0})) EXPECT_NE(shape.members[0].index, 1);
}

TEST(PlacementTest, MicrosecondsMoveRanksWithinTheBudget) {
  const auto sites = random_sites(true);
  PlacementOptions options{Placement::fisher, 0, 16, 0, 0, 0};
  const auto by_bytes = place_within_file(sites, options, 6000);
  const CompensatorCost latency{50, 1e-3};  // a site costs more than its ranks: few sites, high ranks
  options.latency = latency;
  const auto by_both = place_within_file(sites, options, 6000);
  EXPECT_LE(placed_bytes(sites, by_both), options.budget_bytes);
  EXPECT_LT(by_both.size(), by_bytes.size());
  EXPECT_LT(placed_us(sites, by_both, latency), placed_us(sites, by_bytes, latency));
  EXPECT_EQ(placed_us(sites, {}, latency), 0);
  EXPECT_NEAR(placed_us(sites, {{sites[0].members, 2, 0, 0}}, latency),
              50 + 2e-3 * static_cast<double>(sites[0].in_features + sites[0].out_features), 1e-9);
}

TEST(RecipeTest, DefaultsFollowTheQuantizerAndTheModel) {
  ModelConfig config = testing::random_model().config;
  Recipe recipe = preset_recipe("standard");
  EXPECT_EQ(recipe.gate_hidden, 0);
  EXPECT_EQ(best_rotation(recipe, config), Rotation::stream);
  config.output_norms = true;
  EXPECT_EQ(best_rotation(recipe, config), Rotation::none) << "Gemma 3";
  config.output_norms = false;
  config.hidden_size = 2 * 513;
  EXPECT_EQ(best_rotation(recipe, config), Rotation::none);
  config.hidden_size = 576;
  const std::int64_t sequences = recipe.samples.sequences;
  set_quantizer(recipe, "rtn");
  EXPECT_EQ(best_rotation(recipe, config), Rotation::none);
  EXPECT_GT(recipe.gate_hidden, 0);
  EXPECT_GT(recipe.samples.sequences, sequences) << "scales train, too";
  EXPECT_EQ(recipe.train.full_rate_kl, 0);
  set_tune(recipe, Tune::none);
  EXPECT_EQ(recipe.samples.sequences, sequences);
  EXPECT_GT(recipe.train.full_rate_kl, 0) << "a backbone may be good already";
}

TEST(PlacementTest, UniformIsEvenAndRandomFollowsItsSeed) {
  const auto sites = random_sites(true);
  std::int64_t least = 99, most = 0;
  for (const auto& shape : place(sites, {Placement::uniform, 3000, 16, 0, 0, 0})) {
    least = std::min(least, shape.rank);
    most = std::max(most, shape.rank);
  }
  EXPECT_LE(most - least, 1);
  const auto ranks = [&](std::uint64_t seed) {
    return placement_json(place(sites, {Placement::random, 3000, 16, 0, 0, seed}), {}, 14, true)["ranks"];
  };
  EXPECT_EQ(ranks(1), ranks(1));
  EXPECT_NE(ranks(1), ranks(2));
  EXPECT_EQ(parse_placement("fisher"), Placement::fisher);
  EXPECT_THROW(parse_placement("best"), Error);
}

// ---------------------------------------------------------------- learned rounding

struct CodeCase {
  LatentWeight latent;
  Tensor scales, gradient;
};

CodeCase code_case(const W4Scheme& scheme) {
  const std::int64_t rows = 11, cols = 70, groups = scheme.group_size == 0 ? 1 : 3;
  CodeCase c;
  c.latent = {scheme, (random_tensor({rows, cols}, 1, 4) + 7.5).clamp(-0.49, 15.49),
              scheme.symmetric ? torch::full({rows, groups}, 8.0F)
                               : torch::round((random_tensor({rows, groups}, 2, 3) + 8).clamp(0, 15))};
  c.scales = random_tensor({rows, groups}, 3, 0.1);  // of both signs
  c.gradient = random_tensor({rows, cols}, 4).to(torch::kBFloat16);
  c.gradient[2].zero_();
  return c;
}

TEST(CodeStepTest, WritesTheWeightOfTheNearestCodes) {
  for (const W4Scheme scheme : {W4Scheme{0, true}, W4Scheme{32, false}}) {
    const CodeCase c = code_case(scheme);
    auto wide = torch::empty({11, 70}), narrow = torch::empty({11, 70}, torch::kBFloat16);
    write_weight(c.latent, c.scales, wide);
    write_weight(c.latent, c.scales, narrow);
    for (std::int64_t i = 0; i < 11; ++i) {
      for (std::int64_t j = 0; j < 70; ++j) {
        const std::int64_t g = scheme.group_size == 0 ? 0 : j / 32;
        const float code = std::floor(c.latent.latent[i][j].item<float>() + 0.5F);
        ASSERT_TRUE(code >= 0 && code <= 15);
        EXPECT_EQ(nearest_codes(c.latent.latent)[i][j].item<float>(), code);
        EXPECT_EQ(wide[i][j].item<float>(), (code - c.latent.zeros[i][g].item<float>()) * c.scales[i][g].item<float>());
      }
    }
    EXPECT_TRUE(narrow.equal(wide.to(torch::kBFloat16)));
  }
}

TEST(CodeStepTest, MovesAgainstTheGradientInsideTheGrid) {
  for (const W4Scheme scheme : {W4Scheme{0, true}, W4Scheme{32, false}}) {
    CodeCase fused = code_case(scheme), wide = code_case(scheme), plain = code_case(scheme);
    const auto before = fused.latent.latent.clone();
    plain.latent.group_index = torch::arange(70).floor_divide(scheme.group_size == 0 ? 70 : 32);  // takes the way of tensor operations
    step_codes(fused.latent, fused.scales, fused.gradient, 0.3);
    step_codes(wide.latent, wide.scales, wide.gradient.to(torch::kFloat32), 0.3);
    step_codes(plain.latent, plain.scales, plain.gradient, 0.3);
    EXPECT_LT(distance(fused.latent.latent, plain.latent.latent), 1e-7);
    EXPECT_LT(distance(wide.latent.latent, plain.latent.latent), 1e-7);
    for (std::int64_t i = 0; i < 11; ++i) {
      for (std::int64_t j = 0; j < 70; ++j) {
        const float slope =
            fused.gradient[i][j].item<float>() * fused.scales[i][scheme.group_size == 0 ? 0 : j / 32].item<float>();
        const float step = slope > 0 ? -0.3F : slope < 0 ? 0.3F : 0.0F;
        EXPECT_NEAR(fused.latent.latent[i][j].item<float>(),
                    std::clamp(before[i][j].item<float>() + step, -0.49F, 15.49F), 1e-5);
      }
    }
  }
}

TEST(CodeStepTest, GradientOfLogScalesIsAutograds) {
  for (const W4Scheme scheme : {W4Scheme{0, true}, W4Scheme{32, false}}) {
    const CodeCase c = code_case(scheme);
    const auto log_scale = torch::zeros_like(c.scales).set_requires_grad(true);
    const auto steps = nearest_codes(c.latent.latent) - expand_groups(c.latent.zeros, 70, scheme).expand({11, 70});
    const auto weight = steps * expand_groups(c.scales * log_scale.exp(), 70, scheme);
    weight.backward(c.gradient.to(torch::kFloat32));
    EXPECT_LT(distance(log_scale_gradient(c.gradient, weight.detach(), scheme), log_scale.grad()), 1e-5);
  }
}

TEST(VisitingOrderTest, IsAPermutationPerEpochAndAFunctionOfTheSeed) {
  const auto order = visiting_order(7, 30, 1);
  ASSERT_EQ(order.size(), 30U);
  for (std::size_t epoch = 0; epoch < 4; ++epoch) {
    std::set<std::int64_t> seen(order.begin() + static_cast<long>(7 * epoch),
                                order.begin() + static_cast<long>(7 * epoch + 7));
    EXPECT_EQ(seen.size(), 7U);
    EXPECT_EQ(*seen.rbegin(), 6);
  }
  EXPECT_EQ(visiting_order(7, 30, 1), order);
  EXPECT_NE(visiting_order(7, 30, 2), order);
  // A longer run begins like a shorter one.
  const auto longer = visiting_order(7, 60, 1);
  EXPECT_TRUE(std::equal(order.begin(), order.end(), longer.begin()));
}

}  // namespace
}  // namespace spear
