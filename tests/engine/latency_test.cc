#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/random.h"
#include "base/temporary_directory.h"
#include "engine/scheduler/compensator_order.h"
#include "engine/scheduler/latency_model.h"
#include "engine/synthetic_table.h"
#include "ops/random_model.h"

namespace spear {
namespace {

using nlohmann::json;
using testing::synthetic_table;

TEST(LatencyTest, GridsAreLinearBetweenNodes) {
  LatencyGrid grid{{1, 3}, {0, 10}, {1, 2, 5, 10}};
  EXPECT_DOUBLE_EQ(grid.at(1, 0), 1);
  EXPECT_DOUBLE_EQ(grid.at(2, 5), (1 + 2 + 5 + 10) / 4.0);
  EXPECT_DOUBLE_EQ(grid.at(0, -5), 1);  // constant below
  EXPECT_DOUBLE_EQ(grid.at(1, 20), 3);  // a straight line beyond
  EXPECT_DOUBLE_EQ(grid.at(5, 0), 9);
  EXPECT_DOUBLE_EQ((LatencyGrid{{1}, {2}, {7}}.at(100, 100)), 7);
  EXPECT_DOUBLE_EQ(LatencyGrid{}.at(1, 1), 0);
  LatencyGrid noisy{{1, 2}, {1, 2, 3}, {1, 3, 2, 2, 1, 5}};
  noisy.make_monotone();
  EXPECT_EQ(noisy.value, (std::vector<double>{1, 1, 2, 1, 1, 5}));
}

TEST(LatencyTest, NoisyEstimatesBecomeTheNearestIncreasingValues) {
  const auto values = [](std::vector<Estimate> estimates) { return nearest_increasing(estimates); };
  EXPECT_EQ(values({}), std::vector<double>{});
  EXPECT_EQ(values({{1}, {2}, {2}, {5}}), (std::vector<double>{1, 2, 2, 5}));
  EXPECT_EQ(values({{3}, {2}, {1}}), (std::vector<double>{2, 2, 2}));
  EXPECT_EQ(values({{1}, {4}, {2}, {3}, {9}}), (std::vector<double>{1, 3, 3, 3, 9}));
  // One bad estimate that is known to be bad hardly moves the others.
  EXPECT_NEAR(values({{1, 100}, {2, 100}, {-50, 0.01}}).at(1), 2, 0.01);
}

TEST(LatencyTest, AStepIsTheSumOfItsParts) {
  const LatencyTable table = synthetic_table();
  EXPECT_NEAR(table.milliseconds({1, 32, 0, 0, 1}), 5.3, 1e-9);
  EXPECT_NEAR(table.milliseconds({4, 4 * 1032, 64, 0, 1}), 5 + 0.3 * 68 + 1e-4 * 4 * 1000, 1e-9);
  EXPECT_NEAR(table.milliseconds({0, 0, 64, 1000, 1}), 5 + 0.3 * 64 + 5e-6 * 64 * 1000, 1e-9);
  EXPECT_NEAR(table.milliseconds({1, 32, 0, 0, 0}), 5.3 - 1.05, 1e-9);
  EXPECT_NEAR(table.milliseconds({1, 32, 0, 0, 0.5}), 5.3 - 0.525, 1e-9);
  EXPECT_EQ(table.milliseconds({}), 0);
  EXPECT_NEAR(table.scaled(2).milliseconds({1, 32, 0, 0, 0}), 2 * 4.25, 1e-9);
  EXPECT_NEAR(compensator_cost(table.scaled(2).kernels)->fixed_us, 4, 1e-9);
  EXPECT_NEAR(table.error_quantile(1), 0.1, 1e-9);
  EXPECT_EQ(table.error_quantile(0.5), 0);
}

TEST(LatencyTest, FilesComeBackAndNothingForeignIsReplaced) {
  TemporaryDirectory directory;
  const LatencyTable table = synthetic_table();
  const auto path = latency_table_path(directory.path(), table.key);
  EXPECT_FALSE(find_latency_table(directory.path(), table.key));
  write_latency_table(path, table);
  write_latency_table(path, table);  // an older one of the same key
  const auto found = find_latency_table(directory.path(), table.key);
  ASSERT_TRUE(found);
  EXPECT_EQ(to_json(*found), to_json(table));
  LatencyKey other = table.key;
  other.threads = 2;
  EXPECT_NE(other.hash(), table.key.hash());
  EXPECT_FALSE(find_latency_table(directory.path(), other));
  LatencyTable moved = table;
  moved.key = other;
  EXPECT_THROW(write_latency_table(path, moved), Error);
  const auto foreign = directory.path() / "notes.json";
  std::ofstream(foreign) << "{\"mine\": 1}";
  EXPECT_THROW(write_latency_table(foreign, table), Error);
  EXPECT_EQ(latency_table_path("/models/m.gguf", table.key).string(),
            "/models/m.gguf.latency-" + table.key.hash() + ".json");
}

TEST(LatencyTest, DamagedFilesAreRefused) {
  const json good = to_json(synthetic_table());
  EXPECT_NO_THROW(parse_latency_table(good, "t"));
  const auto refused = [&](const char* pointer, const json& value) {
    json bad = good;
    bad[json::json_pointer(pointer)] = value;
    try {
      parse_latency_table(bad, "the file");
    } catch (const Error& error) {
      return error.code() == ExitCode::bad_input && error.where() == "the file";
    }
    return false;
  };
  EXPECT_TRUE(refused("/schema", "spear.latency/2"));
  EXPECT_TRUE(refused("/schema", 7));
  EXPECT_TRUE(refused("/key/threads", "two"));
  EXPECT_TRUE(refused("/key/machine", std::string(100'000, 'x')));
  EXPECT_TRUE(refused("/base", json::array()));
  EXPECT_TRUE(refused("/base/ms/3", -1));
  EXPECT_TRUE(refused("/base/ms/3", 1e300));
  EXPECT_TRUE(refused("/base/ms/3", "x"));
  EXPECT_TRUE(refused("/base/x", {1, 1, 2, 3}));
  EXPECT_TRUE(refused("/base/x", json::array()));
  EXPECT_TRUE(refused("/base/y", {1, 2}));
  EXPECT_TRUE(refused("/base/ms", json(std::vector<double>(16, 0.0))));
  EXPECT_TRUE(refused("/compensators/x", json(std::vector<int>(100'000, 1))));
  EXPECT_TRUE(refused("/held_out/0/density", nullptr));
  EXPECT_TRUE(refused("/module_us", "none"));
  EXPECT_TRUE(refused("/kernels", 1));
  EXPECT_TRUE(refused("/kernels/0/rows", -5));
  EXPECT_TRUE(refused("/kernels/1/early_us", nullptr));
  json older = good;
  older.erase("kernels");
  EXPECT_TRUE(parse_latency_table(older, "t").kernels.empty());
  EXPECT_THROW(parse_latency_table(json::array(), "t"), Error);
  EXPECT_THROW(parse_latency_table(json::object(), "t"), Error);
}

TEST(LatencyTest, KernelsChooseAWayOfFusingAndPriceCompensators) {
  const LatencyTable table = synthetic_table();
  const FusionTable choices(table.kernels);
  EXPECT_EQ(choices.at({100, 200, 3}, 1), Fusion::late);
  EXPECT_EQ(choices.at({100, 200, 3}, 20), Fusion::early) << "what is usual, where others win by noise";
  EXPECT_EQ(choices.at({100, 200, 3}, 63), Fusion::early);
  EXPECT_EQ(choices.at({100, 200, 3}, 100), Fusion::separate);
  EXPECT_EQ(choices.at({100, 200, 3}, 500), Fusion::early) << "256 tokens were not measured";
  EXPECT_EQ(choices.at({100, 200, 2}, 500), Fusion::early) << "not measured";
  const auto cost = compensator_cost(table.kernels);
  ASSERT_TRUE(cost);
  EXPECT_NEAR(cost->fixed_us, 2, 1e-9);
  EXPECT_NEAR(cost->us_per_weight, 1e-3, 1e-12);
  LatencyTable one = table;  // of a single rank: no line, but a slope
  one.kernels.resize(1);
  ASSERT_TRUE(compensator_cost(one.kernels));
  EXPECT_EQ(compensator_cost(one.kernels)->fixed_us, 0);
  EXPECT_NEAR(compensator_cost(one.kernels)->us_per_weight, 2.3 / 300, 1e-9);
  LatencyTable falling = table;  // by noise, a higher rank looks cheaper
  falling.kernels[3].fused_us = {11, 20, 30};
  ASSERT_TRUE(compensator_cost(falling.kernels));
  EXPECT_GE(compensator_cost(falling.kernels)->us_per_weight, 0);
  EXPECT_NEAR(compensator_cost(falling.kernels)->fixed_us, (2.3 + 1) / 2, 1e-9);
  one.kernels.clear();
  EXPECT_FALSE(compensator_cost(one.kernels));
}

TEST(LatencyTest, FactorsFollowWhatStepsTake) {
  LatencyModel model(synthetic_table());
  const StepShape decode{8, 800, 0, 0, 1}, prefill{0, 0, 64, 0, 1};
  const double expected = model.seconds(decode), other = model.seconds(prefill);
  for (int i = 0; i < 200; ++i) model.observe(decode, 1.4 * expected);
  EXPECT_NEAR(model.seconds(decode), 1.4 * expected, 0.01 * expected);
  EXPECT_EQ(model.seconds(prefill), other);  // another regime
  model.observe(decode, 1000 * expected);    // the machine slept
  EXPECT_LT(model.seconds(decode), 1.44 * expected);
  model.observe(decode, 0);
  model.observe(decode, -1);
  EXPECT_LT(model.seconds(decode), 1.44 * expected);
  LatencyModel fixed(synthetic_table(), false);
  fixed.observe(decode, 1.4 * expected);
  EXPECT_EQ(fixed.seconds(decode), expected);
}

TEST(LatencyTest, MarginsKeepNinetyNineOfAHundredSteps) {
  // Whatever the spread, and whatever the first margin: quiet and noisy machines, too small and too large a start.
  for (const double noise : {0.01, 0.1, 0.25}) {
    for (const double first : {1.0, 2.0}) {
      LatencyModel model(synthetic_table(), true, first);
      const StepShape step{8, 800, 24, 0, 1};
      const double expected = LatencyModel(synthetic_table(), false).seconds(step);
      Random random(7, 0);
      int late = 0, counted = 0;
      for (int i = 0; i < 20'000; ++i) {
        double seconds = expected * std::exp(noise * random.normal());
        if (i % 500 == 0) seconds *= 20;  // the machine slept
        if (i >= 4000) {
          ++counted;
          late += seconds > model.seconds_at_most(step) ? 1 : 0;
        }
        model.observe(step, seconds);
      }
      EXPECT_NEAR(static_cast<double>(late) / counted, 0.01, 0.004) << noise << " " << first;
      // 2.33 deviations are the 99th percentile of what is not asleep; the mean follows the noise a little as well.
      EXPECT_LT(model.margin(step), std::exp(2.33 * noise + 0.25)) << noise << " " << first;
    }
  }
  LatencyModel fixed(synthetic_table(), false, 1.5);
  const StepShape decode{1, 10, 0, 0, 1};
  EXPECT_NEAR(fixed.seconds_at_most(decode), 1.5 * fixed.seconds(decode), 1e-12);
  for (int i = 0; i < 100; ++i) fixed.observe(decode, 1);
  EXPECT_NEAR(fixed.seconds_at_most(decode), 1.5 * fixed.seconds(decode), 1e-12);
  EXPECT_THROW(LatencyModel(synthetic_table(), true, 0.5), Error);
  EXPECT_THROW(LatencyModel(synthetic_table(), true, 1e9), Error);
}

TEST(LatencyTest, CompensatorsAreOrderedByDamagePerByte) {
  testing::RandomModelOptions options;
  options.compensators = true;
  const ModelWeights weights = testing::random_model(options);
  const auto shares = compensator_shares(weights);
  std::vector<double> damage(shares.size(), 0.0);
  for (std::size_t i = 0; i < damage.size(); ++i) damage[i] = static_cast<double>((i * 37) % 11);
  const auto order = compensator_order(weights, damage);
  double bytes = 0;
  for (const double share : shares) bytes += share;
  EXPECT_NEAR(bytes, static_cast<double>(compensator_bytes(weights)), 1e-6);
  for (std::size_t i = 1; i < order.size(); ++i) {
    const auto a = static_cast<std::size_t>(order[i - 1]), b = static_cast<std::size_t>(order[i]);
    EXPECT_GE(damage[a] / shares[a], damage[b] / shares[b]);
  }
  EXPECT_EQ(compensator_order(weights, {}).size(), order.size());

  TemporaryDirectory directory;
  EXPECT_TRUE(read_module_damage(directory.path(), 2).empty());
  const auto manifest = [&](const char* text) { std::ofstream(directory.path() / "spear.json") << text; };
  manifest(R"({"diagnosis": {"damage": [0.5, 0.25]}})");
  EXPECT_EQ(read_module_damage(directory.path(), 2), (std::vector<double>{0.5, 0.25}));
  EXPECT_THROW(read_module_damage(directory.path(), 3), Error);
  manifest(R"({"diagnosis": {"damage": [0.5, "x"]}})");
  EXPECT_THROW(read_module_damage(directory.path(), 2), Error);
  manifest(R"({"diagnosis": 3})");
  EXPECT_TRUE(read_module_damage(directory.path(), 2).empty());
}

}  // namespace
}  // namespace spear
