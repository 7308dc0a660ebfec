#include "ops/cpu_model.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/comparison.h"
#include "ops/random_model.h"

namespace spear {
namespace {

using testing::random_model;
using testing::random_blocks;
using testing::random_tokens;
using testing::RandomModelOptions;
using testing::relative_error;
using testing::shuffle_groups;

constexpr double kTolerance = 3e-6;

/// Hidden states of the reference backend.
std::vector<double> reference(const ModelWeights& weights, std::span<const std::int32_t> tokens, std::int64_t batch,
                              bool compensators = true) {
  RefOps ops(weights, compensators);
  TokenBatch input{tokens, batch, static_cast<std::int64_t>(tokens.size()) / batch};
  return transformer(ops, weights.config, input).values;
}

std::vector<float> hidden(CpuModel& model, std::span<const std::int32_t> tokens, std::int64_t batch = 1,
                          KvCache* cache = nullptr) {
  return model.hidden_states({tokens, batch, static_cast<std::int64_t>(tokens.size()) / batch}, cache);
}

TEST(CpuModelTest, AgreesWithTheReferenceInEveryFormat) {
  const auto tokens = random_tokens(42, 61, 1);
  for (const bool packed : {true, false}) {
    for (const DType dense : {DType::f32, DType::f16, DType::bf16}) {
      for (const char* scheme : {"w4-channel-sym", "w4-channel-asym", "w4-g32-asym"}) {
        RandomModelOptions options;
        options.packed = packed;
        options.dense = dense;
        options.scheme = parse_scheme(scheme);
        options.tied = dense == DType::f32;
        const ModelWeights weights = random_model(options);
        CpuModel model(weights);
        EXPECT_LT(relative_error(hidden(model, tokens, 2), reference(weights, tokens, 2)), kTolerance)
            << packed << " " << name(dense) << " " << scheme;
      }
    }
  }
}

/// With compensators; embedding in bf16, two heads to a head of keys.
ModelWeights compensated_model(std::int64_t hidden, std::int64_t intermediate, std::int64_t heads, W4Scheme scheme) {
  RandomModelOptions options;
  options.compensators = true;
  options.hidden = hidden;
  options.intermediate = intermediate;
  options.heads = heads;
  options.kv_heads = heads / 2;
  options.head_dim = hidden / heads;
  options.scheme = scheme;
  options.dense = DType::bf16;
  return random_model(options);
}

/// Groups of 32 of 96 and 72 columns (the last one of 8), in an order that q, k and v share or have each their own.
ModelWeights act_order_model(bool shared, bool symmetric) {
  ModelWeights weights = compensated_model(96, 72, 6, {32, symmetric});
  for (int i = 0; i < module_count(weights.config); ++i) {
    const int seed = shared ? ModuleId{i}.input_group().index : i;
    shuffle_groups(std::get<W4Matrix>(weights.linear({i}).weight), static_cast<std::uint64_t>(seed));
  }
  return weights;
}

TEST(CpuModelTest, GroupsThatDoNotFollowTheInputs) {
  const auto tokens = random_tokens(37, 61, 11);
  for (const bool shared : {true, false}) {
    for (const bool symmetric : {true, false}) {
      const ModelWeights weights = act_order_model(shared, symmetric);
      const auto expected = reference(weights, tokens, 1);
      const auto with = [](Activations activations) {
        return CpuModelOptions{.activations = activations, .head_type = HeadType::bf16};  // the embedding as it is
      };
      CpuModel exact(weights), fast(weights, with(Activations::a16)), a8(weights, with(Activations::a8));
      EXPECT_LT(relative_error(hidden(exact, tokens), expected), kTolerance);
      // As far from the reference as the same activations are with groups in order.
      ModelWeights in_order = weights;
      for (int i = 0; i < module_count(weights.config); ++i) std::get<W4Matrix>(in_order.linear({i}).weight).group_index.clear();
      const auto other = reference(in_order, tokens, 1);
      for (auto* model : {&fast, &a8}) {
        CpuModel plain(in_order, with(model->activations()));
        const double usual = relative_error(hidden(plain, tokens), other), found = relative_error(hidden(*model, tokens), expected);
        EXPECT_LT(found, 2 * usual + 1e-6) << shared << symmetric;
      }
      EXPECT_GT(relative_error(hidden(exact, tokens), other), 1e-2) << "the order makes no difference";
      // One token at a time from a cache: other kernels.
      const auto cache = fast.make_cache(1, 37);
      std::vector<float> states;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto part = hidden(fast, std::span(tokens).subspan(i, 1), 1, cache.get());
        states.insert(states.end(), part.begin(), part.end());
      }
      EXPECT_LT(relative_error(states, expected), 1e-3);
    }
  }
}

TEST(CpuModelTest, APlantedWrongOrderIsSeen) {
  const auto tokens = random_tokens(20, 61, 12);
  const ModelWeights good = act_order_model(true, true);
  const auto expected = reference(good, tokens, 1);
  ModelWeights bad = good;
  auto& groups = std::get<W4Matrix>(bad.linear(ModuleId::of(1, LinearKind::down_proj)).weight).group_index;
  const auto other = std::find_if(groups.begin(), groups.end(), [&](auto group) { return group != groups[0]; });
  std::swap(groups[0], *other);
  for (const Activations activations : {Activations::f32, Activations::a16}) {
    const CpuModelOptions options{.activations = activations, .head_type = HeadType::bf16};
    CpuModel right(good, options), wrong(bad, options);
    EXPECT_GT(relative_error(hidden(wrong, tokens), expected), 3 * relative_error(hidden(right, tokens), expected));
  }
  auto& uneven = std::get<W4Matrix>(bad.linear({2}).weight).group_index;  // what readers refuse
  uneven.assign(uneven.size(), 0);
  EXPECT_THROW(CpuModel(bad, {.activations = Activations::a16}), Error);
}

/// One linear of each type that llama.cpp mixes, beside 4-bit and dense ones.
ModelWeights block_model() {
  ModelWeights weights = compensated_model(256, 512, 4, {32, true});
  const char* types[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"};
  for (int i = 0; i < module_count(weights.config); ++i) {
    if (i % 10 == 9) continue;
    LinearWeight& weight = weights.linear({i}).weight;
    const Shape shape = shape_of(weight);
    weight = random_blocks(shape[0], shape[1], types[i % 10], static_cast<std::uint64_t>(i), 1 / std::sqrt(static_cast<double>(shape[1])));
  }
  weights.validate("blocks");
  return weights;
}

TEST(CpuModelTest, BlocksOfEveryGgufType) {
  const auto tokens = random_tokens(37, 61, 13);
  const ModelWeights weights = block_model();
  const auto expected = reference(weights, tokens, 1);
  CpuModel exact(weights), fast(weights, {.activations = Activations::a16, .head_type = HeadType::bf16});
  EXPECT_LT(relative_error(hidden(exact, tokens), expected), 1e-5);  // sums of 512
  EXPECT_LT(relative_error(hidden(fast, tokens), expected), 1e-2);  // rounded to bf16
  ModelWeights planted = weights;
  auto& blocks = std::get<BlockMatrix>(planted.linear({4}).weight).blocks;
  blocks[5] ^= std::byte{0x10};  // a single code
  CpuModel wrong(planted);
  EXPECT_GT(relative_error(hidden(wrong, tokens), expected), 1e-4);
  std::get<BlockMatrix>(planted.linear({4}).weight).blocks.pop_back();
  EXPECT_THROW(CpuModel{planted}, Error);
}

TEST(CpuModelTest, EveryInstructionSetAgreesWithTheReference) {
  RandomModelOptions options;
  options.compensators = true;
  const ModelWeights weights = random_model(options);
  const auto tokens = random_tokens(40, 61, 2);
  const auto expected = reference(weights, tokens, 1);
  for (const char* isa : {"generic", "avx2", "avx512"}) {
    ASSERT_EQ(setenv("SPEAR_FORCE_ISA", isa, 1), 0);
    try {
      CpuModel model(weights);
      EXPECT_EQ(model.isa(), isa);
      EXPECT_LT(relative_error(hidden(model, tokens), expected), kTolerance) << isa;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);  // this machine does not have it
    }
  }
  unsetenv("SPEAR_FORCE_ISA");
}

TEST(CpuModelTest, PartOfTheCompensatorsInTheOrderGiven) {
  RandomModelOptions options;
  options.compensators = true;
  const ModelWeights weights = random_model(options);
  const auto tokens = random_tokens(37, 61, 3);
  std::vector<int> order;
  for (int i = module_count(weights.config) - 1; i >= 0; --i) {
    if (weights.linear({i}).compensator) order.push_back(i);
  }
  for (const Activations activations : {Activations::f32, Activations::a16}) {
    CpuModel model(weights, {.activations = activations});
    const double tolerance = activations == Activations::f32 ? kTolerance : 2e-2;
    const auto all = hidden(model, tokens);
    model.set_compensator_order(order);
    EXPECT_EQ(hidden(model, tokens), all);
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, order.size() / 2, order.size()}) {
      ModelWeights part = weights;
      for (std::size_t i = count; i < order.size(); ++i) part.linear({order[i]}).compensator.reset();
      model.set_compensator_density(static_cast<double>(count) / static_cast<double>(order.size()));
      const auto found = hidden(model, tokens);
      CpuModel expected(part, {.activations = activations});
      EXPECT_EQ(found, hidden(expected, tokens)) << count;
      EXPECT_LT(relative_error(found, reference(part, tokens, 1)), tolerance);
    }
    order.pop_back();
    EXPECT_THROW(model.set_compensator_order(order), Error);
    order.push_back(order.front());
    EXPECT_THROW(model.set_compensator_order(order), Error);
    order.clear();
    for (int i = module_count(weights.config) - 1; i >= 0; --i) {
      if (weights.linear({i}).compensator) order.push_back(i);
    }
  }
}

TEST(CpuModelTest, EverythingThatFamiliesAdd) {
  RandomModelOptions options;
  options.layers = 3;
  options.compensators = options.every_option = true;
  const ModelWeights weights = random_model(options);
  const auto tokens = random_tokens(2 * 41, 61, 9);
  const auto expected = reference(weights, tokens, 2);
  CpuModel model(weights);
  EXPECT_LT(relative_error(hidden(model, tokens, 2), expected), kTolerance);
  const auto cache = model.make_cache(2, 41);
  std::vector<float> last;
  for (const std::size_t length : {3U, 17U, 1U, 1U, 12U, 7U}) {
    const auto first = static_cast<std::size_t>(cache->length());
    std::vector<std::int32_t> part;
    for (const std::size_t s : {0U, 1U}) {
      const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(s * 41 + first);
      part.insert(part.end(), begin, begin + static_cast<std::ptrdiff_t>(length));
    }
    last = hidden(model, part, 2, cache.get());
  }
  const std::vector<double> end(expected.begin() + 34 * 24, expected.begin() + 41 * 24);
  EXPECT_LT(relative_error(std::span(last).first(7 * 24), end), kTolerance) << "from the cache";
  // Each option is seen.
  const auto error_with = [&](auto&& change) {
    ModelWeights changed = weights;
    change(changed);
    CpuModel other(changed);
    return relative_error(hidden(other, tokens, 2), expected);
  };
  const auto config_error = [&](auto&& change) { return error_with([&](ModelWeights& w) { change(w.config); }); };
  EXPECT_GT(config_error([](ModelConfig& c) { c.sliding_window = 8; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.local_layers[0] = false; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.rope_local_theta = 0; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.rope_scaling = {}; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.query_pre_attn_scalar = 4; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.hidden_act = HiddenAct::silu; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.embedding_scale = 1; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.output_norms = false; }), 1e-3);
  EXPECT_GT(config_error([](ModelConfig& c) { c.qk_norm = false; }), 1e-3);
  for (const auto kind : {LinearKind::q_proj, LinearKind::o_proj, LinearKind::up_proj, LinearKind::down_proj}) {
    EXPECT_GT(error_with([&](ModelWeights& w) {
                auto& bias = w.linear(ModuleId::of(1, kind)).bias;
                bias = Tensor(DType::f32, bias.shape());
              }), 1e-3) << static_cast<int>(kind);
  }
}

TEST(CpuModelTest, CompensatorsAndTheirGates) {
  RandomModelOptions options;
  options.compensators = true;
  const ModelWeights weights = random_model(options);
  const auto tokens = random_tokens(37, 61, 3);
  CpuModel model(weights);
  const auto on = hidden(model, tokens);
  EXPECT_LT(relative_error(on, reference(weights, tokens, 1)), kTolerance);
  model.set_compensators(false);
  const auto off = hidden(model, tokens);
  EXPECT_LT(relative_error(off, reference(weights, tokens, 1, false)), kTolerance);
  EXPECT_GT(relative_error(off, reference(weights, tokens, 1)), 1e-3);

  // Planted faults that the comparison must see: no gate, a gate of the wrong sign.
  ModelWeights ungated = weights, negated = weights;
  for (int i = 0; i < module_count(weights.config); ++i) {
    if (!weights.linear({i}).compensator) continue;
    ungated.linear({i}).compensator->gate = {};
    CompensatorGate& gate = negated.linear({i}).compensator->gate;
    for (auto* part : {&gate.w2, &gate.b2}) {
      for (auto& bits : *part) bits ^= 0x8000U;
    }
  }
  CpuModel without_gate(ungated), wrong_sign(negated);
  EXPECT_GT(relative_error(hidden(without_gate, tokens), reference(weights, tokens, 1)), 1e-3);
  EXPECT_GT(relative_error(hidden(wrong_sign, tokens), reference(weights, tokens, 1)), 1e-3);
  EXPECT_LT(relative_error(hidden(without_gate, tokens), reference(ungated, tokens, 1)), kTolerance);
}

TEST(CpuModelTest, ACacheFilledBitByBitEqualsTheWhole) {
  RandomModelOptions options;
  options.compensators = true;
  const ModelWeights weights = random_model(options);
  const auto tokens = random_tokens(30, 61, 4);
  const auto expected = reference(weights, tokens, 1);
  CpuModel model(weights);
  const auto cache = model.make_cache(1, 30);
  std::vector<float> states;
  for (const std::size_t length : {17U, 1U, 1U, 4U, 1U, 6U}) {
    const auto first = static_cast<std::size_t>(cache->length());
    const auto part = hidden(model, std::span(tokens).subspan(first, length), 1, cache.get());
    states.insert(states.end(), part.begin(), part.end());
  }
  EXPECT_EQ(cache->length(), 30);
  EXPECT_LT(relative_error(states, expected), kTolerance);
}

TEST(CpuModelTest, SequencesOfABatchDoNotMix) {
  const ModelWeights weights = random_model();
  CpuModel model(weights);
  const auto tokens = random_tokens(3 * 20, 61, 5);
  const auto together = hidden(model, tokens, 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto alone = hidden(model, std::span(tokens).subspan(i * 20, 20));
    const std::vector<double> expected(alone.begin(), alone.end());
    EXPECT_LT(relative_error(std::span(together).subspan(i * 20 * 24, 20 * 24), expected), kTolerance);
  }
}

TEST(CpuModelTest, BitsDependNeitherOnThreadsNorOnTheRun) {
  RandomModelOptions options;
  options.compensators = true;
  const ModelWeights weights = random_model(options);
  const auto tokens = random_tokens(50, 61, 6);
  CpuModel one(weights, {1, true}), three(weights, {3, true});
  const auto first = hidden(one, tokens);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(hidden(three, tokens), first);
}

TEST(CpuModelTest, LogitsAreTheHeadsProducts) {
  RandomModelOptions options;
  options.tied = false;
  options.dense = DType::bf16;
  const ModelWeights weights = random_model(options);
  CpuModel model(weights);
  const auto states = testing::random_floats(5 * 24, 7);
  std::vector<float> logits(5 * 61);
  model.logits(states, logits);
  EXPECT_LE(testing::linear_error(testing::as_matrix(states, 5, 24), ref::dequantize(weights.head()), logits, 61), 1.0);
  EXPECT_THROW(model.logits(std::span(states).first(23), logits), Error);
}

TEST(CpuModelTest, ObserversSeeNamedIntermediates) {
  CpuModel model(random_model());
  std::vector<std::string> seen;
  model.set_observer([&](std::string_view name, std::int64_t layer, std::span<const float> values) {
    seen.push_back(std::string(name) + ":" + std::to_string(layer) + ":" + std::to_string(values.size()));
  });
  const auto tokens = random_tokens(2, 61, 8);
  hidden(model, tokens);
  EXPECT_EQ(seen, (std::vector<std::string>{"embed:-1:48", "attention:0:48", "post_attention:0:48", "gated_act:0:88",
                                            "layer:0:48", "attention:1:48", "post_attention:1:48", "gated_act:1:88",
                                            "layer:1:48"}));
}

TEST(CpuModelTest, RefusesWrongInput) {
  CpuModel model(random_model());
  const auto code_of = [&](std::vector<std::int32_t> tokens, std::int64_t batch, KvCache* cache) {
    try {
      model.hidden_states({tokens, batch, static_cast<std::int64_t>(tokens.size()) / std::max<std::int64_t>(batch, 1)},
                          cache);
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  const auto cache = model.make_cache(1, 3);
  EXPECT_EQ(code_of({1, 2, 61}, 1, nullptr), ExitCode::bad_input);
  EXPECT_EQ(code_of({1, -1}, 1, nullptr), ExitCode::bad_input);
  EXPECT_EQ(code_of({}, 1, nullptr), ExitCode::usage);
  EXPECT_EQ(code_of({1, 2, 3}, 2, nullptr), ExitCode::usage);
  EXPECT_EQ(code_of({1, 2, 3, 4}, 1, cache.get()), ExitCode::usage);
  EXPECT_EQ(code_of({1, 2}, 2, cache.get()), ExitCode::usage);
  EXPECT_EQ(cache->length(), 0);
  EXPECT_EQ(code_of({1, 2, 3}, 1, cache.get()), ExitCode::ok);
  EXPECT_EQ(code_of({1}, 1, cache.get()), ExitCode::usage);
}

TEST(CpuModelTest, RefusesWeightsThatDoNotFitTheConfig) {
  const auto code_of = [](ModelWeights weights) {
    try {
      CpuModel model(std::move(weights));
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  const ModelWeights good = random_model();
  EXPECT_EQ(code_of(good), ExitCode::ok);
  ModelWeights weights = good;
  weights.linear({3}).weight = testing::random_w4(24, 25, {}, 1);
  EXPECT_EQ(code_of(weights), ExitCode::bad_input);
  weights = good;
  weights.layers.pop_back();
  EXPECT_EQ(code_of(weights), ExitCode::bad_input);
  weights = good;
  weights.norm = Tensor(DType::f32, {23});
  EXPECT_EQ(code_of(weights), ExitCode::bad_input);
  weights = good;
  weights.linear({0}).compensator = testing::random_compensator(2, 0, 0, 23, testing::random_input(2, 24, 1), 1);
  EXPECT_EQ(code_of(weights), ExitCode::bad_input);
}

}  // namespace
}  // namespace spear
