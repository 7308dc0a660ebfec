#include "engine/mean_gates.h"

#include <gtest/gtest.h>

#include "ops/random_model.h"
#include "ops/ref/ref_ops.h"

namespace spear {
namespace {

/// The reference backend, which sees the inputs of linears themselves.
class WatchingOps : private RefOps {
 public:
  using Activation = RefMatrix;
  using Batch = TokenBatch;

  explicit WatchingOps(const ModelWeights& weights)
      : RefOps(weights), weights_(weights), sums(static_cast<std::size_t>(module_count(weights.config))) {}

  Stream<WatchingOps> embed(const Batch& batch, NormId gain) { return from(RefOps::embed(batch, gain)); }
  template <std::size_t N>
  std::array<Activation, N> linears(const Activation& x, const std::array<ModuleId, N>& ids) {
    for (const ModuleId id : ids) watch(x, id);
    return RefOps::linears(x, ids);
  }
  Stream<WatchingOps> linear_tail(Activation y, const Tail& tail, Stream<WatchingOps> stream) {
    watch(y, tail.linear);
    return from(RefOps::linear_tail(std::move(y), tail, {std::move(stream.residual), std::move(stream.normed)}));
  }
  using RefOps::attention;
  using RefOps::gated_act;
  using RefOps::observe;

 private:
  static Stream<WatchingOps> from(Stream<RefOps> s) { return {std::move(s.residual), std::move(s.normed)}; }
  void watch(const Activation& x, ModuleId id) {
    const auto& compensator = weights_.linear(id).compensator;
    if (!compensator) return;
    auto& sum = sums[static_cast<std::size_t>(id.index)];
    sum.resize(static_cast<std::size_t>(compensator->rank));
    std::vector<float> z(static_cast<std::size_t>(compensator->a->rows)), g(sum.size());
    for (std::int64_t row = 0; row < x.rows; ++row) {
      const std::vector<float> input(x.values.begin() + row * x.cols, x.values.begin() + (row + 1) * x.cols);
      project(*compensator->a, input, z);
      gate_values(*compensator, z, g);
      for (std::size_t r = 0; r < g.size(); ++r) sum[r] += g[r];
    }
  }
  const ModelWeights& weights_;

 public:
  std::vector<std::vector<double>> sums;
};

void expect_means_of_reference(bool every_option) {
  testing::RandomModelOptions options;
  options.compensators = true;
  options.every_option = every_option;
  const ModelWeights weights = testing::random_model(options);
  ASSERT_TRUE(has_gates(weights));
  const std::int64_t count = 24, length = 12;
  const auto tokens = testing::random_tokens(count, weights.config.vocab_size, 4);
  WatchingOps watching(weights);
  TokenBatch batch{tokens, count / length, length};
  transformer(watching, weights.config, batch);

  CpuModel model(weights, {.threads = 2});
  const MeanGates found = measure_mean_gates(model, tokens, length);
  int compared = 0, moved = 0;
  for (int index = 0; index < module_count(weights.config); ++index) {
    const auto& compensator = weights.linear({index}).compensator;
    const auto& gates = found.at(static_cast<std::size_t>(index));
    if (!compensator || compensator->gate.hidden == 0) {
      EXPECT_TRUE(gates.empty());
      continue;
    }
    ASSERT_EQ(gates.size(), static_cast<std::size_t>(compensator->rank));
    for (std::size_t r = 0; r < gates.size(); ++r) {
      const double expected = watching.sums[static_cast<std::size_t>(index)][r] / static_cast<double>(count);
      EXPECT_NEAR(gates[r], expected, 1e-4) << ModuleId{index}.name();
      moved += std::abs(expected - 1) > 0.01;
      ++compared;
    }
  }
  EXPECT_GT(compared, 10);
  EXPECT_GT(moved, compared / 2);  // gates that all stay at 1 would prove nothing
}

TEST(MeanGates, AreThoseOfTheReferenceBackend) { expect_means_of_reference(false); }
TEST(MeanGates, HoldForEveryOptionOfTheFamilies) { expect_means_of_reference(true); }

}  // namespace
}  // namespace spear
