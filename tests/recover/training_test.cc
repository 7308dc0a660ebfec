// Training: what is trained is what is stored, continues exactly, and lowers the loss it claims to lower.
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "base/error.h"
#include "model/weights.h"
#include "ops/comparison.h"
#include "ops/cpu_model.h"
#include "recover/principal_factors.h"
#include "recover/train.h"
#include "torch/tensors.h"
#include "torch/torch_tensors.h"

namespace spear {
namespace {

using testing::distance;
using testing::random_tensor;

constexpr std::int64_t kVocabulary = 61;

ModelWeights dense_model() {
  testing::RandomModelOptions options;
  options.packed = false;
  return testing::random_model(options);
}

struct Choice {
  Tune tune = Tune::none;
  const char* scheme = "w4-channel-sym";
  std::int64_t gate_hidden = 0;
  torch::ScalarType compute = torch::kFloat32;
};

/// A quantized model in training, with compensators on q, k, v (one A) and on every other module of layer 1.
struct Trained {
  explicit Trained(const Choice& choice, std::uint64_t seed = 1)
      : reference(dense_model()), model(reference, torch::kCPU, choice.compute) {
    torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> latents;
    for (int i = 0; i < module_count(reference.config); ++i) {
      const auto weight = to_torch(std::get<Tensor>(reference.linear({i}).weight));
      quantized.push_back(quantize_clip(weight, parse_scheme(choice.scheme), torch::ones({weight.size(1)})));
      const auto& q = quantized.back();
      const auto position =
          weight / expand_groups(q.scales, weight.size(1), q.scheme) + expand_groups(q.zeros, weight.size(1), q.scheme);
      latents.push_back(position.clamp(-0.49, 15.49));
    }
    const std::int64_t gate_rows = choice.gate_hidden > 0 ? 1 : 0;
    const auto add = [&](std::vector<ModuleId> members, std::int64_t rank) {
      CompensatorStart start{{members, rank, gate_rows, choice.gate_hidden}, {}, {}, {}};
      const std::int64_t in = in_features(reference.config, members[0].kind());
      start.a = random_tensor({rank + gate_rows, in}, 20 + static_cast<std::uint64_t>(members[0].index), 0.2);
      start.sigma = torch::full({rank + gate_rows}, 0.7F);
      for (const ModuleId id : members)
        start.b.push_back(random_tensor({out_features(reference.config, id.kind()), rank},
                                        60 + static_cast<std::uint64_t>(id.index), 0.05));
      starts.push_back(start);
    };
    add({ModuleId{0}, ModuleId{1}, ModuleId{2}}, 3);
    for (int i = 10; i < 14; ++i) add({ModuleId{i}}, 2);
    trainable.emplace(model, quantized, choice.tune == Tune::codes ? latents : std::vector<torch::Tensor>{}, starts,
                      choice.tune, seed);
    rates.codes = 0.05;
    rates.groups.fill(3e-3);
  }

  torch::Tensor tokens() const { return model.token_tensor({testing::random_tokens(40, kVocabulary, 3), 2, 20}); }
  /// Steps on an arbitrary smooth loss, so that every parameter moves.
  void steps(int count, bool int8) {
    const auto direction = random_tensor({40, reference.config.hidden_size}, 4, 0.1);
    for (int i = 0; i < count; ++i) {
      trainable->install(int8, true);
      (model.hidden(tokens()) * direction).sum().backward();
      trainable->step(rates);
    }
  }
  ModelWeights exported() const { return trainable->export_weights(reference); }

  ModelWeights reference;
  TorchModel model;
  std::vector<QuantizedLinear> quantized;
  std::vector<CompensatorStart> starts;
  std::optional<TrainableModel> trainable;
  TrainableModel::Rates rates;
};

const Choice kChoices[] = {{Tune::none, "w4-channel-sym", 0},   {Tune::none, "w4-g32-asym", 4},
                           {Tune::scales, "w4-channel-sym", 4}, {Tune::scales, "w4-channel-asym", 0},
                           {Tune::scales, "w4-g32-sym", 0},     {Tune::codes, "w4-channel-sym", 0},
                           {Tune::codes, "w4-g32-asym", 4}};

std::string label(const Choice& c) {
  return std::string(c.scheme) + " tune " + std::to_string(static_cast<int>(c.tune)) + " gate " +
         std::to_string(c.gate_hidden);
}

bool same_bytes(const TensorMap& a, const TensorMap& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, tensor] : a) {
    const auto other = b.find(name);
    if (other == b.end() || !std::equal(tensor.bytes().begin(), tensor.bytes().end(), other->second.bytes().begin(),
                                        other->second.bytes().end()))
      return false;
  }
  return true;
}

TEST(TrainableTest, TheOnlinePlaneComputesWhatWasTrained) {
  for (const Choice& choice : kChoices) {
    Trained run(choice);
    run.steps(6, false);
    run.steps(2, true);
    torch::NoGradGuard no_grad;
    run.trainable->install(true, true);
    const auto trained = run.model.hidden(run.tokens());
    const ModelWeights weights = run.exported();
    const auto tokens = testing::random_tokens(40, kVocabulary, 3);
    CpuModel online(weights);
    const auto found = online.hidden_states({tokens, 2, 20}, nullptr);
    EXPECT_LT(distance(testing::as_tensor(found, {40, 24}), trained), 1e-5) << label(choice);
    // Something was trained, and what may not move did not.
    Trained start(choice);
    start.trainable->install(true, true);
    EXPECT_GT(distance(start.model.hidden(run.tokens()), trained), 1e-3) << label(choice);
    bool codes_moved = false, scales_moved = false;
    for (int i = 0; i < module_count(weights.config); ++i) {
      const auto before = run.quantized[static_cast<std::size_t>(i)].pack(),
                 after = std::get<W4Matrix>(weights.linear({i}).weight);
      codes_moved |= before.packed != after.packed;
      scales_moved |= before.scales != after.scales;
      EXPECT_EQ(before.zeros, after.zeros);
    }
    EXPECT_EQ(codes_moved, choice.tune == Tune::codes) << label(choice);
    EXPECT_EQ(scales_moved, choice.tune != Tune::none) << label(choice);
  }
}

TEST(TrainableTest, BytesAreCountedAsStored) {
  for (const Choice& choice : kChoices) {
    Trained run(choice);
    const ModelWeights weights = run.exported();
    EXPECT_EQ(run.trainable->compensator_bytes(), compensator_bytes(weights)) << label(choice);
    EXPECT_EQ(weights.linear({0}).compensator->a, weights.linear({2}).compensator->a);
    for (int i = 0; i < module_count(weights.config); ++i) {
      if (weights.linear({i}).compensator) weights.linear({i}).compensator->validate();
    }
  }
}

TEST(TrainableTest, AGateStartsAsAnExactNoOp) {
  Trained run({Tune::none, "w4-channel-sym", 4});
  torch::NoGradGuard no_grad;
  for (const bool int8 : {false, true}) {
    run.trainable->install(int8, true);
    const auto gated = run.model.hidden(run.tokens());
    run.trainable->install(int8, false);
    EXPECT_TRUE(gated.equal(run.model.hidden(run.tokens())));
  }
  torch::AutoGradMode with_grad(true);
  run.steps(3, false);
  torch::NoGradGuard again;
  run.trainable->install(false, true);
  const auto gated = run.model.hidden(run.tokens());
  run.trainable->install(false, false);
  EXPECT_GT(distance(gated, run.model.hidden(run.tokens())), 1e-6) << "and doesn't stay one";
}

TEST(TrainableTest, AStateContinuesBitForBit) {
  for (Choice choice : kChoices) {
    choice.compute = torch::kBFloat16;
    Trained whole(choice), first(choice), second(choice, /*seed=*/9);
    whole.steps(7, true);
    first.steps(3, true);
    second.trainable->load_state(first.trainable->state());
    EXPECT_EQ(second.trainable->steps_done(), 3);
    second.steps(4, true);
    EXPECT_TRUE(same_bytes(second.trainable->state(), whole.trainable->state())) << label(choice);
    EXPECT_FALSE(same_bytes(first.trainable->state(), whole.trainable->state()));
  }
}

TEST(TrainableTest, RefusesTheStateOfAnotherRun) {
  Trained run({Tune::none, "w4-channel-sym", 4});
  const auto refused = [&](TensorMap state) {
    try {
      run.trainable->load_state(state);
    } catch (const Error& error) {
      return error.code() == ExitCode::bad_input && !error.remedy().empty();
    }
    return false;
  };
  auto state = run.trainable->state();
  auto missing = state, reshaped = state;
  const std::string name = ModuleId{0}.name() + ".A";
  missing.erase(name);
  reshaped[name] = Tensor(DType::f32, {1, 24});
  EXPECT_TRUE(refused(missing));
  EXPECT_TRUE(refused(reshaped));
  EXPECT_FALSE(refused(state));
}

TEST(TrainableTest, SnapshotsBringBackTheStoredModel) {
  for (const Choice& choice : kChoices) {
    Trained run(choice);
    run.steps(3, true);
    torch::NoGradGuard no_grad;
    run.trainable->install(true, true);
    const auto then = run.model.hidden(run.tokens()).clone();
    const auto kept = run.trainable->snapshot();
    {
      torch::AutoGradMode with_grad(true);
      run.steps(3, true);
    }
    run.trainable->restore(kept);
    run.trainable->install(true, true);
    EXPECT_TRUE(run.model.hidden(run.tokens()).equal(then)) << label(choice);
  }
}

// ---------------------------------------------------------------- train()

CalibrationSet samples() { return {96, 32, 12, testing::random_tokens(96 * 32, kVocabulary, 11)}; }

torch::Tensor teacher_states() {
  TorchModel reference(dense_model(), torch::kCPU, torch::kFloat32);
  return reference_states(reference, samples());
}

TrainOptions options() {
  TrainOptions o;
  o.steps = 100;
  o.tokens_per_step = 64;
  o.sequence_length = 16;
  o.warmup_steps = 4;
  o.rates.codes = 0.01;
  o.rates.groups.fill(5e-3);
  return o;
}

TEST(CodeStepTest, GroupsThatDoNotFollowTheColumns) {
  const std::int64_t rows = 5, cols = 72;
  W4Matrix matrix = testing::random_w4(rows, cols, {32, false}, 3);
  testing::shuffle_groups(matrix, 8);
  const QuantizedLinear q = unpack(matrix, torch::kCPU);
  const LatentWeight latent{q.scheme, q.codes, q.zeros, q.group_index};
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    auto weight = torch::empty({rows, cols}, torch::TensorOptions().dtype(type));
    write_weight(latent, q.scales, weight);
    EXPECT_TRUE(weight.equal(q.dequantize().to(type)));
    const auto gradient = random_tensor({rows, cols}, 9).to(type);
    const auto found = log_scale_gradient(gradient, weight, q.scheme, q.group_index);
    auto expected = torch::zeros({rows, 3});
    for (std::int64_t col = 0; col < cols; ++col) {
      expected.select(1, matrix.group_of(col)) +=
          gradient.select(1, col).to(torch::kFloat32) * weight.select(1, col).to(torch::kFloat32);
    }
    EXPECT_LT(distance(found, expected), 1e-4 * expected.norm().item<double>());
    EXPECT_GT(distance(log_scale_gradient(gradient, weight, q.scheme), expected), 0.01 * expected.norm().item<double>());
    LatentWeight stepped{q.scheme, q.codes.to(torch::kFloat32), q.zeros, q.group_index};
    step_codes(stepped, -q.scales, gradient, 0.25);  // the step has the scale's sign
    const auto direction = (q.codes - stepped.latent) * 4;
    const auto wanted = -gradient.to(torch::kFloat32).sign();
    const auto free = (q.codes > 0) & (q.codes < 15);
    EXPECT_TRUE(direction.masked_select(free).equal(wanted.masked_select(free)));
  }
}

TEST(TrainTest, ReferenceStatesAndHeldOutKlByTheDefinition) {
  Trained run({});
  run.trainable->install(true, true);
  const auto set = samples();
  const auto states = teacher_states();
  TorchModel reference(run.reference, torch::kCPU, torch::kFloat32);
  torch::NoGradGuard no_grad;
  const auto tokens = reference.token_tensor({set.tokens, 96, 32});
  EXPECT_TRUE(states.equal(reference.hidden(tokens).view({96, 32, 24}).to(torch::kBFloat16)));
  // Held-out rows are the last twelve, the first six select; each is cut into two pieces that know nothing of each other.
  const auto held = tokens.narrow(0, 84, 6).reshape({12, 16});
  const auto head = reference.weights().head.to(torch::kFloat64);
  const auto log_s = torch::log_softmax(torch::matmul(run.model.hidden(held).to(torch::kFloat64), head.t()), -1);
  const auto log_t =
      torch::log_softmax(torch::matmul(states.narrow(0, 84, 6).reshape({192, 24}).to(torch::kFloat64), head.t()), -1);
  const auto expected = (log_t.exp() * (log_t - log_s)).sum(1).view({12, 16}).mean(1);
  std::vector<double> pieces;
  EXPECT_NEAR(held_out_kl(run.model, set, states, 16, 1 << 20, &pieces), expected.mean().item<double>(), 1e-5);
  ASSERT_EQ(pieces.size(), 12U);
  for (std::int64_t i = 0; i < 12; ++i)
    EXPECT_NEAR(pieces[static_cast<std::size_t>(i)], expected[i].item<double>(), 1e-5);
  EXPECT_NEAR(held_out_kl(run.model, set, states, 16, 64), expected.narrow(0, 0, 4).mean().item<double>(), 1e-5);
}

TEST(TrainTest, LowersHeldOutKlTheSameWayEveryTime) {
  const auto set = samples();
  const auto states = teacher_states();
  for (const Tune tune : {Tune::none, Tune::scales, Tune::codes}) {
    Trained one({tune}), two({tune}), other({tune});
    const auto result = train(one.model, *one.trainable, set, states, options());
    EXPECT_LT(result.best_kl, (tune == Tune::none ? 0.97 : 0.93) * result.start_kl) << static_cast<int>(tune);
    EXPECT_EQ(one.trainable->steps_done(), 100);
    EXPECT_NEAR(held_out_kl(one.model, set, states, 16, 1 << 20), result.best_kl, 1e-12)
        << "the best state is installed";
    EXPECT_FALSE(result.curve.empty());
    EXPECT_EQ(result.curve.back().step, 100);
    train(two.model, *two.trainable, set, states, options());
    EXPECT_TRUE(same_bytes(one.trainable->state(), two.trainable->state()));
    auto reseeded = options();
    reseeded.seed = 1;
    train(other.model, *other.trainable, set, states, reseeded);
    EXPECT_FALSE(same_bytes(one.trainable->state(), other.trainable->state()));
  }
}

TEST(TrainTest, RatesFollowWhatIsLeftAtTheStart) {
  const auto set = samples();
  const auto states = teacher_states();
  const auto trained = [&](double full_rate_kl, double share) {
    Trained run({Tune::none});
    auto how = options();
    how.full_rate_kl = full_rate_kl;
    for (double& rate : how.rates.groups) rate *= share;
    train(run.model, *run.trainable, set, states, how);
    return run.trainable->state();
  };
  Trained run({Tune::none});
  auto none = options();
  none.steps = 0;
  const double start = train(run.model, *run.trainable, set, states, none).start_kl;
  const auto halved = trained(0, 0.5);
  EXPECT_TRUE(same_bytes(trained(2 * start, 1), halved));
  EXPECT_TRUE(same_bytes(trained(start / 2, 0.5), halved)) << "never above the rates";
  EXPECT_FALSE(same_bytes(trained(0, 1), halved));
}

TEST(TrainTest, KeepsTheStartWhenNothingLaterIsBetter) {
  const auto set = samples();
  const auto states = teacher_states();
  for (const Tune tune : {Tune::none, Tune::codes}) {
    Trained run({tune}), untouched({tune});
    auto wild = options();
    wild.rates.codes = 5;
    wild.rates.groups.fill(0.5);
    const auto result = train(run.model, *run.trainable, set, states, wild);
    EXPECT_EQ(result.best_step, 0);
    EXPECT_EQ(held_out_kl(run.model, set, states, 16, 1 << 20), result.start_kl);
    const auto after = run.exported(), before = untouched.exported();
    for (int i = 0; i < module_count(after.config); ++i) {
      EXPECT_EQ(std::get<W4Matrix>(after.linear({i}).weight).packed,
                std::get<W4Matrix>(before.linear({i}).weight).packed);
      if (after.linear({i}).compensator) {
        EXPECT_EQ(after.linear({i}).compensator->b, before.linear({i}).compensator->b);
      }
    }
  }
}

TEST(TrainTest, NothingToTrainIsNoFailure) {
  Trained run({});
  TrainableModel bare(run.model, run.quantized, {}, {}, Tune::none, 1);
  const auto result = train(run.model, bare, samples(), teacher_states(), options());
  EXPECT_EQ(result.best_kl, result.start_kl);
}

TEST(TrainTest, RefusesPiecesLongerThanTheSamples) {
  Trained run({});
  auto longer = options();
  longer.sequence_length = 33;
  EXPECT_THROW(train(run.model, *run.trainable, samples(), teacher_states(), longer), Error);
}

TEST(PrincipalFactorsTest, TheSameProductWithRanksInFallingOrderOfTheOutputTheyMake) {
  torch::NoGradGuard no_grad;
  Trained t({});
  t.trainable->install(false, false);
  std::vector<CompensatorSite> sites;
  for (const auto& start : t.starts) sites.push_back({start.shape.members, start.shape.rank, 0});
  const auto tokens = torch::randint(0, kVocabulary, {3, 12}, torch::kInt64);
  // Inputs of the first member of every site, by hand.
  std::map<int, torch::Tensor> inputs;
  t.model.on_linear = [&](ModuleId id, const torch::Tensor& x, torch::Tensor&) { inputs[id.index] = x.to(torch::kFloat64); };
  t.model.hidden(tokens);
  t.model.on_linear = nullptr;
  const auto found = principal_factors(t.model, sites, tokens);
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const auto& x = inputs.at(sites[i].members.front().index);
    std::vector<torch::Tensor> before, after;
    for (std::size_t m = 0; m < sites[i].members.size(); ++m) {
      const auto& c = *t.model.linear(sites[i].members[m]).compensator;
      before.push_back(torch::matmul(c.b, c.a).to(torch::kFloat64));
      after.push_back(found.factors[i].b[m].to(torch::kFloat64));
    }
    const auto a = found.factors[i].a.to(torch::kFloat64), b = torch::cat(after, 0);
    EXPECT_LT(distance(torch::matmul(b, a), torch::cat(before, 0)), 1e-3);
    // Each rank's output energy is its singular value squared, and no rank overlaps another.
    const auto z = torch::matmul(x, a.t());
    for (std::int64_t r = 0; r < a.size(0); ++r) {
      const double energy = z.select(1, r).square().mean().item<double>() * b.select(1, r).square().sum().item<double>();
      const double s = found.singular_values[i][static_cast<std::size_t>(r)];
      EXPECT_NEAR(energy / (s * s), 1, 0.02) << i << " " << r;
      if (r > 0) {
        EXPECT_LE(s, found.singular_values[i][static_cast<std::size_t>(r - 1)]);
      }
    }
  }
}

}  // namespace
}  // namespace spear
