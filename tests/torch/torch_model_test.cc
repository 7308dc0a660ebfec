// The torch plane against logits of Hugging Face transformers, the online plane and the reference backend.
#include "torch/torch_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "model/stream_rotation.h"
#include "ops/cpu_model.h"
#include "ops/golden.h"
#include "torch/chunked_ops.h"
#include "torch/fused_ops.h"
#include "torch/tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::Golden;
using testing::logits_of;
using testing::random_model;
using testing::random_tokens;
using testing::RandomModelOptions;
using testing::relative_error;

double tolerance(const ModelConfig& config) { return testing::golden_tolerance(config); }

Golden read_golden(const std::string& name) { return testing::read_golden("llama-golden/" + name); }

std::vector<float> torch_logits(const ModelWeights& weights, const Golden& golden) {
  TorchModel model(weights, torch::kCPU, torch::kFloat32);
  return logits_of(model, golden);
}

constexpr const char* kGoldens[] = {"tied", "untied", "wide"};

TEST(GoldenLogitsTest, EveryPlaneAgreesWithTransformers) {
  for (const char* name : kGoldens) {
    const Golden golden = read_golden(name);
    const double allowed = tolerance(golden.weights.config);
    CpuModel cpu(golden.weights);
    EXPECT_LT(relative_error(torch_logits(golden.weights, golden), golden.logits), allowed) << name << ", torch plane";
    EXPECT_LT(relative_error(logits_of(cpu, golden), golden.logits), allowed) << name << ", online plane";
    EXPECT_LT(relative_error(testing::reference_logits(golden.weights, golden), golden.logits), allowed) << name << ", reference backend";
  }
}

TEST(GoldenLogitsTest, EveryFamilyAgreesWithTransformers) {
  for (const std::string name : testing::kFamilyGoldens) {
    const Golden golden = testing::read_golden("family-golden/" + name);
    EXPECT_LT(relative_error(torch_logits(golden.weights, golden), golden.logits), tolerance(golden.weights.config)) << name;
  }
}

/// Weights of any type in f32, so that rotating does not round them.
ModelWeights in_f32(ModelWeights weights) {
  weights.embed_tokens = weights.embed_tokens.to(DType::f32);
  if (!weights.lm_head.empty()) weights.lm_head = weights.lm_head.to(DType::f32);
  for (int i = 0; i < module_count(weights.config); ++i) {
    LinearModule& module = weights.linear({i});
    module.weight = Tensor::from_floats(shape_of(module.weight), dequantize(module.weight));
    if (!module.bias.empty()) module.bias = module.bias.to(DType::f32);
  }
  return weights;
}

/// Rotated and folded again, a model computes what it did.
TEST(GoldenLogitsTest, ARotatedStreamAgreesWithTransformers) {
  std::vector<std::string> names;
  for (const char* name : kGoldens) names.push_back(std::string("llama-golden/") + name);
  for (const std::string name : testing::kFamilyGoldens) names.push_back("family-golden/" + name);
  int rotated_families = 0;
  for (const std::string& name : names) {
    Golden golden = testing::read_golden(name);
    if (golden.weights.config.output_norms) continue;
    ++rotated_families;
    const double allowed = 2 * tolerance(golden.weights.config);  // one more product on either side of every weight
    const auto check = [&](const ModelWeights& weights, const char* what) {
      CpuModel cpu(weights);
      EXPECT_LT(relative_error(torch_logits(weights, golden), golden.logits), allowed) << name << what << ", torch plane";
      EXPECT_LT(relative_error(logits_of(cpu, golden), golden.logits), allowed) << name << what << ", online plane";
      EXPECT_LT(relative_error(testing::reference_logits(weights, golden), golden.logits), allowed) << name << what << ", reference backend";
    };
    ModelWeights rotated = rotate_stream(in_f32(golden.weights));
    check(rotated, " rotated");
    check(fold_stream_rotation(rotated), " folded");
    rotated.config.rotated_stream = false;  // planted: rotated weights without the rotation at both ends
    EXPECT_GT(relative_error(torch_logits(rotated, golden), golden.logits), 0.1) << name;
  }
  EXPECT_GT(rotated_families, 6);
}

TEST(GoldenLogitsTest, PlantedFaultsAreSeen) {
  for (const char* name : kGoldens) {
    const Golden golden = read_golden(name);
    const ModelConfig& c = golden.weights.config;
    const auto error_with = [&](auto&& change) {
      ModelWeights weights = golden.weights;
      change(weights);
      return relative_error(torch_logits(weights, golden), golden.logits);
    };
    const auto permuted = [&](LinearKind kind, const std::vector<std::int64_t>& order) {
      return error_with([&](ModelWeights& weights) {
        auto& weight = std::get<Tensor>(weights.linear(ModuleId::of(0, kind)).weight);
        const auto rows = weight.to_floats();
        std::vector<float> out;
        for (const std::int64_t row : order) {
          out.insert(out.end(), rows.begin() + row * c.hidden_size, rows.begin() + (row + 1) * c.hidden_size);
        }
        weight = Tensor::from_floats(weight.shape(), out);
      });
    };
    // Two query heads change places; q keeps the interleaved row order of GGUF files.
    std::vector<std::int64_t> swapped(static_cast<std::size_t>(c.q_size())), interleaved = swapped;
    for (std::int64_t row = 0; row < c.q_size(); ++row) {
      const std::int64_t head = row / c.head_dim, i = row % c.head_dim, half = c.head_dim / 2;
      const std::int64_t other = head == 0 ? c.num_attention_heads - 1 : head == c.num_attention_heads - 1 ? 0 : head;
      swapped[static_cast<std::size_t>(row)] = other * c.head_dim + i;
      interleaved[static_cast<std::size_t>(row)] = head * c.head_dim + i / 2 + (i % 2) * half;
    }
    EXPECT_GT(permuted(LinearKind::q_proj, swapped), 1e-2) << name;
    EXPECT_GT(permuted(LinearKind::q_proj, interleaved), 1e-2) << name;
    EXPECT_GT(error_with([](ModelWeights& w) { w.config.rope_theta *= 1.5; }), 1e-3) << name;
    EXPECT_GT(error_with([](ModelWeights& w) { w.config.rms_norm_eps += 1e-2; }), 1e-3) << name;
  }
}

ModelWeights compensated_model(const W4Scheme& scheme = {}, bool every_option = false) {
  RandomModelOptions options;
  options.compensators = true;
  options.every_option = every_option;
  options.scheme = scheme;
  return random_model(options);
}

std::vector<float> torch_hidden(const ModelWeights& weights, std::span<const std::int32_t> tokens, std::int64_t batch) {
  TorchModel model(weights, torch::kCPU, torch::kFloat32);
  return model.hidden_states({tokens, batch, static_cast<std::int64_t>(tokens.size()) / batch}, nullptr);
}

TEST(TorchModelTest, AgreesWithTheOtherPlanesOnGatedCompensatorsWithSharedA) {
  const auto tokens = random_tokens(2 * 31, 61, 1);
  for (const char* scheme : {"w4-channel-sym", "w4-g32-asym"}) {
    const ModelWeights weights = compensated_model(parse_scheme(scheme), scheme == std::string("w4-g32-asym"));
    const double allowed = tolerance(weights.config);
    const auto found = torch_hidden(weights, tokens, 2);
    RefOps ops(weights);
    TokenBatch input{tokens, 2, 31};
    EXPECT_LT(relative_error(found, transformer(ops, weights.config, input).values), allowed) << scheme;
    CpuModel cpu(weights);
    const auto online = cpu.hidden_states({tokens, 2, 31}, nullptr);
    EXPECT_LT(relative_error(found, std::vector<double>(online.begin(), online.end())), allowed) << scheme;

    ModelWeights negated = weights, unshared = weights;
    for (int i = 0; i < module_count(weights.config); ++i) {
      if (!weights.linear({i}).compensator) continue;
      for (auto* part : {&negated.linear({i}).compensator->gate.w2, &negated.linear({i}).compensator->gate.b2}) {
        for (auto& bits : *part) bits ^= 0x8000U;
      }
      auto& a = unshared.linear({i}).compensator->a;
      a = std::make_shared<CompensatorInput>(*a);
    }
    const std::vector<double> expected(found.begin(), found.end());
    EXPECT_GT(relative_error(torch_hidden(negated, tokens, 2), expected), 1e-3) << "a gate of the wrong sign";
    EXPECT_EQ(torch_hidden(unshared, tokens, 2), found) << "sharing A is a matter of bytes only";
  }
}

void expect_cache_equals_the_whole(const ModelWeights& weights) {
  // Past position 512 the rotary tables grow; chunks longer than a block of queries.
  const std::int64_t length = 530;
  const auto tokens = random_tokens(2 * length, 61, 2);
  TorchModel model(weights, torch::kCPU, torch::kFloat32);
  torch::NoGradGuard no_grad;
  const auto all = model.token_tensor({tokens, 2, length});
  const auto whole = model.hidden(all).view({2, length, -1});
  const auto cache = model.make_cache(2, length);
  std::vector<torch::Tensor> parts;
  for (const std::int64_t count : {200, 1, 1, 303, 6, 1, 18}) {
    parts.push_back(model.hidden(all.narrow(1, cache->length(), count), cache.get()).view({2, count, -1}));
  }
  EXPECT_EQ(cache->length(), length);
  EXPECT_LT(distance(torch::cat(parts, 1), whole), tolerance(weights.config));
  EXPECT_THROW(model.hidden(all.narrow(1, 0, 1), cache.get()), Error);
}

TEST(TorchModelTest, ACacheFilledBitByBitEqualsTheWhole) {
  expect_cache_equals_the_whole(compensated_model());
  expect_cache_equals_the_whole(compensated_model({}, true));
}

TEST(TorchModelTest, AnUnchangedPrefixIsReused) {
  TorchModel model(compensated_model(), torch::kCPU, torch::kFloat32);
  torch::NoGradGuard no_grad;
  const auto tokens = model.token_tensor({random_tokens(40, 61, 3), 2, 20});
  const auto stream = model.stream_before(tokens, 1);
  EXPECT_TRUE(model.advance(stream, 1, 2, tokens).normed.equal(model.hidden(tokens)));
}

TEST(ChunkedOpsTest, ChunksAreWholeSequences) {
  const auto rows = [](std::int64_t sequences, std::int64_t length) {
    std::vector<std::int64_t> out;
    for (const auto& chunk : ChunkedOps::batch(torch::zeros({sequences, length}, torch::kInt64))) out.push_back(chunk.tokens.size(0));
    return out;
  };
  EXPECT_EQ(rows(100, 128), (std::vector<std::int64_t>{64, 36}));
  EXPECT_EQ(rows(3, 5000), (std::vector<std::int64_t>{1, 1, 1}));
  EXPECT_EQ(rows(2, 10000), (std::vector<std::int64_t>{1, 1}));
}

TEST(ChunkedOpsTest, LayersAgreeWithTheWholeBatchAndHooksSeeAllOfIt) {
  torch::NoGradGuard no_grad;
  TorchModel model(compensated_model(), torch::kCPU, torch::kFloat32);
  const std::int64_t sequences = 100, length = 100;
  const auto tokens = model.token_tensor({random_tokens(sequences * length, 61, 5), sequences, length});
  ChunkedOps ops(model);
  auto batch = ChunkedOps::batch(tokens);
  ASSERT_EQ(batch.size(), 2U);
  std::vector<int> firsts;
  ops.before_linears = [&](ModuleId first, const ChunkedOps::Activation& x) {
    firsts.push_back(first.index);
    std::int64_t seen = 0;
    for (const auto& chunk : x) seen += chunk.size(0);
    EXPECT_EQ(seen, sequences * length);
    EXPECT_EQ(x.back().size(1), in_features(model.config(), first.kind()));
  };
  const auto stream = decoder_layers(ops, model.config(), 0, 2, ops.embed(batch, NormId::input(0)), batch);
  EXPECT_EQ(firsts, (std::vector<int>{0, 3, 4, 6, 7, 10, 11, 13}));
  EXPECT_LT(distance(torch::cat(stream.normed), model.hidden(tokens)), 1e-5);
}

TEST(TorchModelTest, HooksSeeEveryLinearOnceWithItsInput) {
  const ModelWeights weights = random_model();
  TorchModel model(weights, torch::kCPU, torch::kFloat32);
  std::vector<int> seen;
  model.on_linear = [&](ModuleId id, const torch::Tensor& x, torch::Tensor& y) {
    seen.push_back(id.index);
    EXPECT_EQ(x.size(1), in_features(weights.config, id.kind()));
    EXPECT_LT(distance(y, torch::matmul(x, model.linear(id).weight.t())), 1e-5);
  };
  const auto tokens = random_tokens(8, 61, 4);
  model.hidden_states({tokens, 1, 8}, nullptr);
  std::vector<int> expected(14);
  for (int i = 0; i < 14; ++i) expected[static_cast<std::size_t>(i)] = i;
  EXPECT_EQ(seen, expected);
}

TEST(TorchModelTest, RefusesTokensOutsideTheVocabulary) {
  TorchModel model(random_model(), torch::kCPU, torch::kFloat32);
  for (const std::int32_t bad : {-1, 61}) {
    const std::vector<std::int32_t> tokens = {0, bad};
    try {
      model.hidden_states({tokens, 1, 2}, nullptr);
      ADD_FAILURE() << "accepted token " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input);
    }
  }
}

/// KL of the model's logits against fixed ones, in float64 from float32 hidden states.
double kl_against(TorchModel& model, const torch::Tensor& tokens, const torch::Tensor& teacher) {
  torch::NoGradGuard no_grad;
  const auto log_s = torch::log_softmax(model.logits(model.hidden(tokens)).to(torch::kFloat64), -1);
  const auto log_t = torch::log_softmax(teacher.to(torch::kFloat64), -1);
  return (log_t.exp() * (log_t - log_s)).sum().item<double>();
}

void expect_gradients_match_finite_differences(const ModelWeights& weights) {
  TorchModel model(weights, torch::kCPU, torch::kFloat32);
  const auto tokens = model.token_tensor({random_tokens(22, 61, 5), 2, 11});
  std::vector<torch::Tensor*> slots;
  for (auto& gain : model.weights().gains) {
    if (gain.defined()) slots.push_back(&gain);
  }
  for (auto& linear : model.weights().linears) {
    linear.row_factor = torch::ones({linear.weight.size(0)});
    slots.insert(slots.end(), {&linear.weight, &linear.row_factor});
    if (!linear.compensator) continue;
    auto& c = *linear.compensator;
    for (auto* part : {&c.a, &c.b, &c.w1, &c.b1, &c.w2, &c.b2}) {
      if (part->defined()) slots.push_back(part);
    }
  }
  torch::Tensor teacher;
  {
    torch::NoGradGuard no_grad;
    teacher = model.logits(model.hidden(tokens));
    teacher = teacher + testing::random_tensor(teacher.sizes().vec(), 6, 0.7);
  }
  for (auto* slot : slots) slot->set_requires_grad(true);
  const auto hidden = model.hidden(tokens);
  torch::Tensor student;
  {
    torch::NoGradGuard no_grad;
    student = model.logits(hidden);
    kl_rows_with_gradient(student, teacher);
  }
  hidden.backward(torch::matmul(student, model.weights().head));
  std::uint64_t seed = 100;
  for (auto* slot : slots) {
    ASSERT_TRUE(slot->grad().defined());
    // Along the gradient the slope is its norm. The step is small against the slot, large against float32's rounding.
    const auto gradient = slot->grad().clone();
    const double norm = gradient.norm().item<double>();
    const auto direction = gradient / norm;
    const double h = 2e-3 * std::max(0.5, slot->detach().norm().item<double>());
    const auto kept = slot->detach().clone();
    torch::NoGradGuard no_grad;
    const auto at = [&](double step) {
      slot->copy_(kept + step * direction);
      return kl_against(model, tokens, teacher);
    };
    const double slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    slot->copy_(kept);
    EXPECT_NEAR(slope, norm, 0.02 * norm + 2e-3) << "slot " << ++seed - 101;
  }
}

TEST(TorchModelTest, GradientsOfEverySlotMatchFiniteDifferences) {
  expect_gradients_match_finite_differences(compensated_model());
  expect_gradients_match_finite_differences(compensated_model({}, true));
}

}  // namespace
}  // namespace spear
