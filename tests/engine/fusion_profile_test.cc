#include "engine/fusion_profile.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "ops/random_model.h"

namespace spear {
namespace {

ModelWeights compensated() {
  testing::RandomModelOptions options;
  options.compensators = true;
  return testing::random_model(options);
}

TEST(FusionProfileTest, MeasuresEveryShapeInEveryWay) {
  CpuModel model(compensated(), {.threads = 2, .activations = Activations::a16});
  ProfileOptions options;
  options.max_decodes = 4;
  options.max_chunk = 16;
  const auto timings = profile_fusion(model, options, 0.05);
  ASSERT_FALSE(timings.empty());
  std::map<std::int64_t, std::int64_t> operations;  // by tokens
  std::set<FusionShape> shapes;
  for (const FusionTiming& timing : timings) {
    operations[timing.tokens] += timing.count;
    shapes.insert(timing.shape);
    EXPECT_GT(timing.shape.ranks, 0);
    EXPECT_GT(timing.plain_us, 0);
    for (const Fusion fusion : kFusions) EXPECT_GT(timing.us(fusion), 0);
  }
  EXPECT_EQ(timings.size(), shapes.size() * operations.size());
  ASSERT_EQ(operations.size(), 5U) << "1, 2, 4, 8 and 16 tokens; none above max_chunk";
  for (const auto& [tokens, count] : operations) EXPECT_EQ(count, operations.at(1)) << tokens;
  EXPECT_LE(operations.at(1), 4 * model.config().num_hidden_layers);
  double noise = 0;  // that a choice may leave on the table
  for (const FusionTiming& timing : timings) noise += timing.tokens == 1 ? 0.021 * static_cast<double>(timing.count) * timing.us(timing.best()) : 0.0;
  const double chosen = added_us(timings, 1, Fusion::automatic);
  for (const Fusion fusion : kFusions) EXPECT_GE(added_us(timings, 1, fusion), chosen - noise) << fusion_name(fusion);
}

TEST(FusionProfileTest, NoBitDependsOnTheChoice) {
  const std::vector<std::int32_t> prompt{1, 5, 9, 2, 7, 3, 11, 4, 8, 6, 10, 12};
  CpuModel model(compensated(), {.threads = 2, .activations = Activations::a8});
  const TokenBatch batch{prompt, 1, static_cast<std::int64_t>(prompt.size())};
  const auto usual = model.hidden_states(batch, nullptr);
  ProfileOptions options;
  options.max_decodes = options.max_chunk = 16;
  auto timings = profile_fusion(model, options, 0.01);
  for (const Fusion fusion : kFusions) {
    for (FusionTiming& timing : timings) {
      timing.fused_us.fill(2);
      timing.fused_us[static_cast<std::size_t>(fusion) - 1] = 1;
      EXPECT_EQ(timing.best(), fusion);
    }
    model.set_fusion_table(FusionTable(timings));
    EXPECT_EQ(model.hidden_states(batch, nullptr), usual) << fusion_name(fusion);
  }
}

TEST(FusionProfileTest, AModelWithoutCompensatorsHasNothingToChoose) {
  CpuModel model(testing::random_model(), {.threads = 1, .activations = Activations::a16});
  EXPECT_TRUE(profile_fusion(model, {}, 0.01).empty());
}

}  // namespace
}  // namespace spear
