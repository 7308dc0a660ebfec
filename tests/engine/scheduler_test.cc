#include "engine/scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/temporary_directory.h"
#include "engine/simulator.h"
#include "engine/synthetic_table.h"

namespace spear {
namespace {

using testing::synthetic_table;

LoadOptions load_of(double rate, std::int64_t count, double ttft_ms, double itl_ms, std::uint64_t seed = 1) {
  LoadOptions load;
  load.rate = rate;
  load.count = count;
  load.slo = {ttft_ms, itl_ms};
  load.seed = seed;
  return load;
}

/// The table is what steps take, and nothing is forced.
SimulationOptions exact() {
  SimulationOptions options;
  options.margin = 1;
  options.scheduler.starvation = 1e9;
  options.num_blocks = 4000;
  return options;
}

/// What must hold for every plan whatever the load.
void check_plan(const SchedulerOptions& options, const Scheduler& scheduler, const StepPlan& plan,
                std::int64_t free_blocks) {
  ASSERT_GE(free_blocks, 0);
  ASSERT_LE(static_cast<std::int64_t>(scheduler.running().size()), options.max_num_seqs);
  std::int64_t decodes = 0, prefill = 0;
  std::set<const ScheduledRequest*> seen;
  for (const ScheduledRequest* request : plan.batch) {
    ASSERT_TRUE(seen.insert(request).second);
    ASSERT_TRUE(request->runs);
    ASSERT_EQ(request->density_class, plan.batch.front()->density_class);
    ASSERT_GE(request->scheduled, 1);
    ASSERT_LE(request->scheduled, request->missing());
    decodes += request->scheduled;
  }
  prefill = plan.shape.prefill;
  ASSERT_EQ(decodes, plan.shape.decodes + prefill);
  if (options.exclusive) {
    ASSERT_TRUE(plan.shape.decodes == 0 || prefill == 0);
  }
}

TEST(SchedulerTest, InvariantsUnderRandomLoad) {
  std::int64_t preemptions = 0, refused = 0, shed = 0;
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    Random random(seed, 11);
    const double rate = 0.5 + 30 * random.uniform(), ttft_ms = 300 + 3000 * random.uniform();
    const double itl_ms = random.below(4) == 0 ? 0 : 8 + 60 * random.uniform();
    auto load = make_load(load_of(rate, 60, ttft_ms, itl_ms, seed));
    for (SimulatedRequest& request : load) {
      request.prompt = std::min<std::int64_t>(request.prompt, 600);
      request.output = std::min<std::int64_t>(request.output, 100);
      request.priority = static_cast<int>(random.below(3));
      if (random.below(5) == 0) request.slo = {};
    }
    SimulationOptions options;
    options.num_blocks = 25 + static_cast<std::int64_t>(random.below(100));
    options.noise = random.below(2) == 0 ? 0 : 0.2;
    options.learn = random.below(2) == 0;
    options.static_chunk = random.below(4) == 0 ? 1 + static_cast<std::int64_t>(random.below(200)) : 0;
    options.scheduler.max_num_seqs = 1 + static_cast<std::int64_t>(random.below(20));
    options.scheduler.exclusive = options.static_chunk == 0 && random.below(2) == 0;
    options.scheduler.refuse_unattainable = random.below(2) == 0;
    options.scheduler.shed_compensators = random.below(2) == 0;
    const auto result = simulate(synthetic_table(), load, options,
                                 [&](const Scheduler& scheduler, const StepPlan& plan, std::int64_t free_blocks,
                                     double) { check_plan(options.scheduler, scheduler, plan, free_blocks); });
    if (HasFatalFailure()) FAIL() << "seed " << seed;
    // Nobody starves: everybody ends, or is told no.
    ASSERT_EQ(result.completed + result.refused, 60) << "seed " << seed;
    if (!options.scheduler.refuse_unattainable || options.static_chunk > 0) {
      ASSERT_EQ(result.refused, 0);
    }
    preemptions += result.preemptions;
    refused += result.refused;
    shed += result.shed_steps;
  }
  EXPECT_GT(preemptions, 100);  // the loads were as bad as they were meant to be
  EXPECT_GT(refused, 100);
  EXPECT_GT(shed, 100);
}

TEST(SchedulerTest, TokensComeInTimeWhenTheTableIsExact) {
  for (const bool exclusive : {false, true}) {
    for (const double rate : {1.0, 4.0, 8.0, 50.0}) {
      for (const double itl_ms : {15.0, 30.0, 100.0}) {
        SimulationOptions options = exact();
        options.scheduler.exclusive = exclusive;
        const auto result = simulate(synthetic_table(), make_load(load_of(rate, 300, 0, itl_ms)), options);
        EXPECT_EQ(result.completed, 300);
        EXPECT_EQ(result.preemptions, 0);
        EXPECT_EQ(result.itl_late, 0) << rate << " per second, " << itl_ms << " ms, longest " << result.itl.most;
        EXPECT_GT(result.itl.most, 0.5 * itl_ms);  // and time is made use of
      }
    }
  }
}

TEST(SchedulerTest, ALongPromptStallsNobody) {
  LoadOptions options = load_of(3, 200, 2000, 25);
  options.long_fraction = 0.02;
  options.max_length = 9000;
  auto load = make_load(options);
  SimulationOptions ours = exact();
  ours.num_blocks = 10000;
  const auto result = simulate(synthetic_table(), load, ours);
  EXPECT_EQ(result.itl_late, 0);
  ours.static_chunk = 512;
  EXPECT_GT(simulate(synthetic_table(), load, ours).itl.most, 100);  // what a fixed budget of 512 does to them
}

TEST(SchedulerTest, FixedBudgetsTradeWhatObjectivesDecide) {
  // Against the best fixed budget with hindsight, at light, medium and full load.
  for (const double rate : {1.0, 4.0, 7.0}) {
    const auto load = make_load(load_of(rate, 400, 1500, 30));
    SimulationOptions options = exact();
    const auto ours = simulate(synthetic_table(), load, options);
    double best = 0;
    for (const std::int64_t chunk : {8, 16, 32, 64, 128, 256, 512}) {
      options.static_chunk = chunk;
      best = std::max(best, simulate(synthetic_table(), load, options).attainment);
    }
    EXPECT_GE(ours.attainment, best - 0.01) << rate << " per second";
  }
}

TEST(SchedulerTest, TheSameSeedGivesTheSameResult) {
  SimulationOptions options;
  options.noise = 0.1;
  const auto load = make_load(load_of(5, 100, 1000, 40));
  auto first = to_json(simulate(synthetic_table(), load, options));
  auto second = to_json(simulate(synthetic_table(), load, options));
  for (auto* json : {&first, &second}) json->erase("decision_us");  // of this machine
  EXPECT_EQ(first, second);
  options.seed = 2;
  auto third = to_json(simulate(synthetic_table(), load, options));
  third.erase("decision_us");
  EXPECT_NE(first, third);
}

TEST(SchedulerTest, UnattainableFirstTokensWaitOrAreRefused) {
  const auto load = make_load(load_of(40, 400, 800, 40));  // several times what the machine can do
  SimulationOptions options = exact();
  const auto waiting = simulate(synthetic_table(), load, options);
  EXPECT_EQ(waiting.completed, 400);
  options.scheduler.refuse_unattainable = true;
  const auto refusing = simulate(synthetic_table(), load, options);
  EXPECT_GT(refusing.refused, 50);
  EXPECT_EQ(refusing.completed + refusing.refused, 400);
  EXPECT_GE(refusing.attainment, waiting.attainment);
  EXPECT_LT(refusing.ttft.p90, waiting.ttft.p90);
}

TEST(SchedulerTest, PrioritiesGoFirstAndWaitingCounts) {
  auto load = make_load(load_of(9, 400, 2000, 40));
  for (std::size_t i = 0; i < load.size(); ++i) load[i].priority = i % 4 == 0 ? 0 : 1;
  std::map<int, double> worst;  // wait for the first token, by priority and 10 x aging
  for (const bool ages : {false, true}) {
    SimulationOptions options = exact();
    options.scheduler.max_num_seqs = 8;
    options.scheduler.aging = ages ? 2 : 1e9;
    std::map<std::uint64_t, std::pair<double, int>> first_seen;
    simulate(synthetic_table(), load, options,
             [&](const Scheduler& scheduler, const StepPlan&, std::int64_t, double now) {
               for (const ScheduledRequest* r : scheduler.running()) {
                 first_seen.try_emplace(r->id, now - r->arrival, r->priority);
               }
             });
    for (const auto& [id, seen] : first_seen) {
      double& most = worst[seen.second + (ages ? 10 : 0)];
      most = std::max(most, seen.first);
    }
  }
  EXPECT_LT(worst[1], worst[0]);   // the higher priority waits less
  EXPECT_LT(worst[10], worst[0]);  // and with aging, the lower one less than without
}

/// Blocks without a cache, for schedulers that are driven by hand.
class Blocks final : public KvSpace {
 public:
  explicit Blocks(std::int64_t blocks) : free_(blocks) {}
  std::int64_t free_blocks() const override { return free_; }
  std::int64_t blocks_missing(const ScheduledRequest& r, std::int64_t tokens) const override {
    const auto held = held_.find(r.id);
    return std::max<std::int64_t>((tokens + 3) / 4 - (held == held_.end() ? 0 : held->second), 0);
  }
  std::int64_t capacity(const ScheduledRequest& r) const override {
    const auto held = held_.find(r.id);
    return held == held_.end() ? 0 : 4 * held->second;
  }
  bool reserve(ScheduledRequest& r, std::int64_t tokens) override {
    for (std::int64_t i = blocks_missing(r, tokens); i > 0; --i) {
      if (free_ == 0) return false;
      --free_;
      ++held_[r.id];
    }
    return true;
  }
  void match_prefix(ScheduledRequest&) override {}
  void drop(ScheduledRequest& r) override {
    free_ += std::exchange(held_[r.id], 0);
    r.computed = 0;
  }

 private:
  std::int64_t free_;
  std::map<std::uint64_t, std::int64_t> held_;
};

void take_step(Scheduler& scheduler, const StepPlan& plan, double now) {
  for (ScheduledRequest* r : plan.batch) {
    r->computed += r->scheduled;
    if (r->missing() > 0) continue;
    ++r->length;
    scheduler.token(*r, now);
  }
}

ScheduledRequest request_of(std::uint64_t id, std::int64_t prompt, int priority = 0) {
  ScheduledRequest request;
  request.id = id;
  request.length = prompt;
  request.priority = priority;
  return request;
}

TEST(SchedulerTest, TheLowestPriorityIsPreempted) {
  Blocks blocks(6);
  LatencyModel model(synthetic_table());
  Scheduler scheduler({}, blocks, model);
  auto high = request_of(1, 7, 1), low = request_of(2, 7), urgent = request_of(3, 8, 5);
  scheduler.add(low);
  take_step(scheduler, scheduler.next(0), 0.01);
  scheduler.add(high);
  for (int i = 1; i < 8; ++i) take_step(scheduler, scheduler.next(0.01 * i), 0.01 * (i + 1));
  EXPECT_TRUE(high.runs);
  EXPECT_FALSE(low.runs);  // both grew until blocks were short
  EXPECT_EQ(scheduler.stats().preemptions, 1);
  // A higher priority does not wait for blocks that a lower one holds.
  scheduler.add(urgent);
  for (int i = 8; i < 14; ++i) take_step(scheduler, scheduler.next(0.01 * i), 0.01 * (i + 1));
  EXPECT_TRUE(urgent.runs);
  EXPECT_FALSE(high.runs);
}

TEST(SchedulerTest, DensitiesTakeTurns) {
  Blocks blocks(1000);
  LatencyModel model(synthetic_table());
  Scheduler scheduler({}, blocks, model);
  std::vector<ScheduledRequest> requests;
  for (std::uint64_t id = 1; id <= 6; ++id) {
    requests.push_back(request_of(id, 10));
    requests.back().itl = 0.1;
    if (id % 2 == 0) requests.back().density_class = 0;
    if (id == 5) requests.back().density_class = 1000;  // all of them: what others get too
  }
  for (auto& request : requests) scheduler.add(request);
  double now = 0;
  std::map<double, int> steps;
  for (int i = 0; i < 40; ++i) {
    const StepPlan& plan = scheduler.next(now);
    ++steps[plan.shape.density];
    for (const ScheduledRequest* r : plan.batch) EXPECT_EQ(r->density_class == 0, plan.shape.density == 0);
    EXPECT_EQ(plan.batch.size(), 3U);
    now += plan.predicted;
    take_step(scheduler, plan, now);
  }
  EXPECT_EQ(steps[0], 20);
  EXPECT_EQ(steps[1], 20);
}

TEST(SchedulerTest, APartOfTheCompensatorsIsWhatEverybodyGets) {
  Blocks blocks(1000);
  LatencyModel model(synthetic_table());
  Scheduler scheduler({.density = 0.38}, blocks, model);
  EXPECT_EQ(scheduler.stats().density, 0.38);
  auto usual = request_of(1, 10), same = request_of(2, 10), all = request_of(3, 10);
  same.density_class = density_key(0.38);
  all.density_class = density_key(1);
  for (auto* request : {&usual, &same, &all}) scheduler.add(*request);
  double now = 0;
  std::map<double, std::size_t> sizes;
  for (int i = 0; i < 10; ++i) {
    const StepPlan& plan = scheduler.next(now);
    sizes[plan.shape.density] = plan.batch.size();
    now += plan.predicted;
    take_step(scheduler, plan, now);
  }
  EXPECT_EQ(sizes, (std::map<double, std::size_t>{{0.38, 2}, {1, 1}}));
  EXPECT_EQ(scheduler.stats().shed_steps, 0);
}

TEST(SchedulerTest, SheddingBeginsAtThePartThatIsUsual) {
  LatencyTable table = synthetic_table();
  for (double& value : table.compensators.value) value *= 2;
  SimulationOptions options = exact();
  options.scheduler.density = 0.5;
  options.scheduler.shed_compensators = true;
  options.scheduler.shed_floor = 0.25;
  double least = 1, most = 0;
  const auto shed = simulate(table, make_load(load_of(6, 300, 1000, 14)), options, [&](const Scheduler&, const StepPlan& plan, std::int64_t, double) {
    if (plan.batch.empty()) return;
    least = std::min(least, plan.shape.density);
    most = std::max(most, plan.shape.density);
  });
  EXPECT_GT(shed.shed_steps, 0);
  EXPECT_EQ(least, 0.25);
  EXPECT_EQ(most, 0.5);
}

TEST(SchedulerTest, CompensatorsAreShedBeforeObjectivesAreMissed) {
  LatencyTable table = synthetic_table();
  for (double& value : table.compensators.value) value *= 2;  // 2.1 of the 5.3 ms of a decode
  const auto busy = make_load(load_of(6, 300, 1000, 14)), calm = make_load(load_of(0.3, 100, 5000, 50));
  SimulationOptions options = exact();
  const auto all = simulate(table, busy, options);
  options.scheduler.shed_compensators = true;
  options.scheduler.shed_floor = 0.25;
  double least = 1;
  const auto shed = simulate(table, busy, options, [&](const Scheduler&, const StepPlan& plan, std::int64_t, double) {
    if (!plan.batch.empty()) least = std::min(least, plan.shape.density);
  });
  EXPECT_EQ(all.shed_steps, 0);
  EXPECT_GT(shed.shed_steps, 0);
  EXPECT_EQ(least, 0.25);
  EXPECT_GT(shed.attainment, all.attainment);
  EXPECT_EQ(shed.itl_late, 0);
  EXPECT_EQ(simulate(table, calm, options).shed_steps, 0);  // not without need
}

TEST(SchedulerTest, AnObjectiveThatNobodyCanMeetDoesNotStopTheOthers) {
  auto load = make_load(load_of(4, 200, 2000, 50));
  load[3].slo.itl_ms = 0.001;
  const auto result = simulate(synthetic_table(), load, exact());
  EXPECT_EQ(result.completed, 200);
  EXPECT_GT(result.most_running, 1);
}

TEST(SchedulerTest, NonsenseIsRefused) {
  Blocks blocks(10);
  LatencyModel model(synthetic_table());
  const auto refused = [&](auto change) {
    SchedulerOptions options;
    change(options);
    try {
      Scheduler(options, blocks, model);
    } catch (const Error& error) {
      return error.code() == ExitCode::usage;
    }
    return false;
  };
  EXPECT_TRUE(refused([](auto& o) { o.max_num_seqs = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.decode_share = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.shed_floor = 2; }));
  EXPECT_TRUE(refused([](auto& o) { o.aging = 0; }));
  EXPECT_FALSE(refused([](auto&) {}));
}

TEST(SchedulerTest, LoadsAreWhatWasAskedFor) {
  const auto load = make_load(load_of(5, 2000, 100, 10));
  EXPECT_NEAR(load.back().arrival, 400, 1e-6);
  double prompts = 0, outputs = 0;
  for (const auto& request : load) {
    prompts += static_cast<double>(request.prompt) / 2000;
    outputs += static_cast<double>(request.output) / 2000;
  }
  EXPECT_NEAR(prompts, 190, 40);
  EXPECT_NEAR(outputs, 195, 20);
  LoadOptions fixed = load_of(5, 10, 0, 0);
  fixed.lengths = "512:64";
  EXPECT_EQ(make_load(fixed)[3].prompt, 512);
  EXPECT_EQ(make_load(fixed)[3].output, 64);
  for (const char* bad : {"512", "512:", ":3", "0:1", "a:b", "5:5x", "-1:5"}) {
    fixed.lengths = bad;
    EXPECT_THROW(make_load(fixed), Error) << bad;
  }
  TemporaryDirectory directory;
  const auto path = directory.path() / "trace.jsonl";
  const auto read = [&](const char* text) {
    std::ofstream(path) << text;
    return read_load(path, {});
  };
  const auto trace = read(
      "{\"arrival_s\":2,\"prompt_tokens\":5,\"output_tokens\":6,\"priority\":1}\n\n"
      "{\"arrival_s\":1,\"prompt_tokens\":7,\"output_tokens\":8,\"itl_ms\":9}\n");
  ASSERT_EQ(trace.size(), 2U);
  EXPECT_EQ(trace[0].prompt, 7);
  EXPECT_EQ(trace[0].slo.itl_ms, 9);
  EXPECT_EQ(trace[1].priority, 1);
  EXPECT_THROW(read(""), Error);
  EXPECT_THROW(read("[]"), Error);
  EXPECT_THROW(read("{\"arrival_s\":2,\"prompt_tokens\":5}"), Error);
  EXPECT_THROW(read("{\"arrival_s\":-2,\"prompt_tokens\":5,\"output_tokens\":6}"), Error);
  EXPECT_THROW(read("{\"arrival_s\":2,\"prompt_tokens\":5e300,\"output_tokens\":6}"), Error);
}

/// Printed, not asserted: the bar is 1 % of an iteration.
TEST(SchedulerTest, CostOfADecision) {
  for (const std::int64_t slots : {32, 256, 4096}) {
    LoadOptions wanted = load_of(1e6, 2 * slots, 0, 1e6);
    wanted.lengths = "8:200";
    SimulationOptions options;
    options.scheduler.max_num_seqs = slots;
    options.scheduler.max_batched_tokens = 2 * slots;
    options.num_blocks = 8 * slots;
    const auto result = simulate(synthetic_table(), make_load(wanted), options);
    const double step_us = 1e6 * result.duration / static_cast<double>(result.steps);
    std::printf("%lld slots: %.1f us per decision, %.3f %% of a step of %.1f ms\n", static_cast<long long>(slots),
                result.decision_us, 100 * result.decision_us / step_us, step_us / 1e3);
    EXPECT_EQ(result.most_running, slots);
  }
}

}  // namespace
}  // namespace spear
