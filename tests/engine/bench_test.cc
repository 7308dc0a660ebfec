#include "engine/bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/random_weights.h"

namespace spear {
namespace {

ModelConfig tiny_config() {
  ModelConfig config = shape_config("smollm2-135m", 300);
  config.num_hidden_layers = 2;
  return config;
}

TEST(RandomWeights, FillTheirBudgetAndRun) {
  const ModelConfig config = tiny_config();
  ModelWeights weights = random_weights(config, {.scheme = parse_scheme("w4-g64-asym"), .compensator_budget = 0.05});
  weights.validate("random");
  const auto base = static_cast<double>(budget_base_bytes(weights, parse_scheme("w4-g64-asym")));
  const double fraction = static_cast<double>(compensator_bytes(weights)) / base;
  EXPECT_LE(fraction, 0.0501);
  EXPECT_GT(fraction, 0.035);
  CpuModel model(std::move(weights), {.threads = 1, .activations = Activations::a16});
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  for (const float value : model.hidden_states({tokens, 1, 3}, nullptr)) ASSERT_TRUE(std::isfinite(value));
  EXPECT_EQ(compensator_bytes(random_weights(config, {.compensator_budget = 0})), 0);
}

TEST(RandomWeights, AnUnknownShapeIsRefusedByName) {
  try {
    shape_config("llama-2t");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(error.remedy().find("llama-1b"), std::string::npos);
  }
}

TEST(Bench, MeasuresEveryCombinationWithAndWithoutCompensators) {
  CpuModel model(random_weights(tiny_config(), {.compensator_budget = 0.05}), {.activations = Activations::a8});
  BenchOptions options;
  options.prompt_tokens = {16, 600};
  options.gen_tokens = 2;
  options.batch = {1, 3};
  options.context = {0, 5, 1030};
  options.threads = {1};
  options.repeats = 2;
  const BenchReport report = run_bench(model, options);
  ASSERT_EQ(report.results.size(), 2U * (2 + 2 * 3));
  EXPECT_GT(report.probe_gb_s.at(1), 0.1);
  for (const BenchResult& r : report.results) {
    EXPECT_EQ(r.rates.size(), 2U);
    EXPECT_GT(r.median(), 0);
    EXPECT_GT(r.bytes_per_token, 0);
  }
  EXPECT_GT(report.results[0].bytes_per_token, report.results[1].bytes_per_token);  // compensators are read too

  const auto json = to_json(report);
  EXPECT_EQ(json.at("schema"), "spear.bench/1");
  EXPECT_TRUE(json.at("probe_gb_s").contains("1"));
  const auto& first = json.at("results").at(0);
  for (const char* field : {"test", "threads", "batch", "tokens", "context", "compensators", "tokens_per_second",
                            "bytes_per_token", "roofline_fraction"}) {
    EXPECT_TRUE(first.contains(field)) << field;
  }
  for (const char* field : {"median", "min", "max"}) EXPECT_TRUE(first.at("tokens_per_second").contains(field));
  const std::string csv = to_csv(report);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 17);
  EXPECT_NE(to_markdown(report).find("|---|"), std::string::npos);
  EXPECT_NE(to_table(report).find("memory read"), std::string::npos);
}

TEST(Bench, RefusesListsThatMakeNoSense) {
  CpuModel model(random_weights(tiny_config()), {.threads = 1});
  for (const auto change : {+[](BenchOptions& o) { o.batch = {0}; }, +[](BenchOptions& o) { o.context = {-1}; },
                            +[](BenchOptions& o) { o.repeats = 0; }, +[](BenchOptions& o) { o.threads.clear(); },
                            +[](BenchOptions& o) { o.context = {1 << 20}; }}) {
    BenchOptions options;
    change(options);
    EXPECT_THROW(run_bench(model, options), Error);
  }
}

TEST(BenchResult, MedianOfOddAndEven) {
  BenchResult result;
  EXPECT_EQ(result.median(), 0);
  result.rates = {3, 1, 2};
  EXPECT_EQ(result.median(), 2);
  result.rates = {4, 1, 2, 3};
  EXPECT_EQ(result.median(), 2.5);
}

}  // namespace
}  // namespace spear
