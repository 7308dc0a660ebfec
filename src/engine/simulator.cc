#include "engine/simulator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

struct Simulated : ScheduledRequest {
  std::int64_t blocks = 0, prompt = 0, output = 0;
  double first_token = 0, end = 0;
  std::int64_t late_gaps = 0;
  double wanted_itl = kNever;  // the scheduler may have raised itl
};

Simulated& simulated(ScheduledRequest& request) { return static_cast<Simulated&>(request); }
const Simulated& simulated(const ScheduledRequest& request) { return static_cast<const Simulated&>(request); }

/// Blocks that are counted and nothing else.
class CountedBlocks final : public KvSpace {
 public:
  CountedBlocks(std::int64_t blocks, std::int64_t block_size) : free_(blocks), block_size_(block_size) {}
  std::int64_t free_blocks() const override { return free_; }
  std::int64_t blocks_missing(const ScheduledRequest& request, std::int64_t tokens) const override {
    return std::max<std::int64_t>((tokens + block_size_ - 1) / block_size_ - simulated(request).blocks, 0);
  }
  std::int64_t capacity(const ScheduledRequest& request) const override {
    return simulated(request).blocks * block_size_;
  }
  bool reserve(ScheduledRequest& request, std::int64_t tokens) override {
    const std::int64_t missing = blocks_missing(request, tokens), taken = std::min(missing, free_);
    simulated(request).blocks += taken;
    free_ -= taken;
    return taken == missing;
  }
  void match_prefix(ScheduledRequest& /*request*/) override {}
  void drop(ScheduledRequest& request) override {
    free_ += std::exchange(simulated(request).blocks, 0);
    request.computed = 0;
  }

 private:
  std::int64_t free_, block_size_;
};

Percentiles percentiles(std::vector<double>& values) {
  Percentiles out;
  if (values.empty()) return out;
  std::sort(values.begin(), values.end());
  // As numpy.percentile: linear between ranks.
  const auto at = [&](double quantile) {
    const double rank = quantile * static_cast<double>(values.size() - 1);
    const auto low = static_cast<std::size_t>(rank);
    const std::size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (rank - static_cast<double>(low)) * (values[high] - values[low]);
  };
  for (const double value : values) out.mean += value / static_cast<double>(values.size());
  out.median = at(0.5);
  out.p90 = at(0.9);
  out.p99 = at(0.99);
  out.most = values.back();
  return out;
}

class Simulation {
 public:
  Simulation(const LatencyTable& table, std::span<const SimulatedRequest> load, const SimulationOptions& options)
      : options_(options),
        truth_(table, false),
        learnt_(table, options.learn, options.margin),
        policy_(options.static_chunk),
        kv_(options.num_blocks, options.block_size),
        scheduler_(options.static_chunk > 0 ? Scheduler(options.scheduler, kv_, policy_)
                                            : Scheduler(options.scheduler, kv_, learnt_)),
        noise_(options.seed, 4),
        requests_(load.size()) {
    for (std::size_t i = 0; i < load.size(); ++i) {
      Simulated& r = requests_[i];
      r.id = i + 1;
      r.priority = load[i].priority;
      r.arrival = load[i].arrival;
      if (load[i].slo.ttft_ms > 0) r.ttft = load[i].slo.ttft_ms * 1e-3;
      if (load[i].slo.itl_ms > 0) r.itl = r.wanted_itl = load[i].slo.itl_ms * 1e-3;
      r.length = r.prompt = load[i].prompt;
      r.output = load[i].output;
      if (blocks(r.prompt + r.output) > options.num_blocks) {
        throw usage_error(fmt::format("a request of {} tokens does not fit into {} blocks of {}", r.prompt + r.output,
                                      options.num_blocks, options.block_size),
                          "--kv-tokens", "give more");
      }
    }
  }

  SimulationResult run(const SimulationObserver& observer) {
    double now = 0, decisions = 0;
    std::size_t next = 0;
    while (true) {
      for (; next < requests_.size() && requests_[next].arrival <= now; ++next) scheduler_.add(requests_[next]);
      const auto start = std::chrono::steady_clock::now();
      const StepPlan& plan = scheduler_.next(now);
      decisions += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (observer) observer(scheduler_, plan, kv_.free_blocks(), now);
      if (plan.batch.empty()) {
        if (next == requests_.size()) break;
        now = std::max(now, requests_[next].arrival);
        continue;
      }
      result_.most_running = std::max(result_.most_running, static_cast<std::int64_t>(scheduler_.running().size()));
      const double seconds =
          truth_.seconds(plan.shape) * (options_.noise > 0 ? std::exp(options_.noise * noise_.normal()) : 1.0);
      now += seconds;
      take_step(plan, now);
      scheduler_.done(seconds);
      for (Simulated* request : ended_) {
        scheduler_.remove(*request);
        kv_.drop(*request);
      }
      ended_.clear();
    }
    if (!scheduler_.waiting().empty() || !scheduler_.running().empty()) throw failed("the simulation came to a stop");
    const SchedulerStats& stats = scheduler_.stats();
    result_.steps = stats.steps;
    result_.shed_steps = stats.shed_steps;
    result_.preemptions = stats.preemptions;
    result_.refused = stats.refused;
    result_.duration = now;
    result_.decision_us = decisions * 1e6 / std::max(1.0, static_cast<double>(stats.steps));
    sum_up();
    return std::move(result_);
  }

 private:
  std::int64_t blocks(std::int64_t tokens) const { return (tokens + options_.block_size - 1) / options_.block_size; }

  void take_step(const StepPlan& plan, double now) {
    for (ScheduledRequest* scheduled : plan.batch) {
      Simulated& r = simulated(*scheduled);
      r.computed += r.scheduled;
      if (r.missing() > 0) continue;
      ++r.length;
      if (r.generated == 0) {
        r.first_token = now;
      } else {
        const double gap = now - r.last_token;
        gaps_.push_back(gap * 1e3);
        if (gap > r.wanted_itl * (1 + 1e-9)) ++r.late_gaps;
      }
      scheduler_.token(r, now);
      if (r.generated < r.output) continue;
      r.end = now;
      ended_.push_back(&r);
    }
  }

  void sum_up() {
    std::vector<double> ttfts, tpots, latencies;
    std::int64_t attained = 0, good = 0, late = 0;
    for (const Simulated& r : requests_) {
      if (r.end == 0) continue;
      ++result_.completed;
      result_.input_tokens += r.prompt;
      result_.output_tokens += r.output;
      late += r.late_gaps;
      const double ttft = r.first_token - r.arrival, rest = r.end - r.first_token;
      const double tpot = r.output > 1 ? rest / static_cast<double>(r.output - 1) : 0.0;
      ttfts.push_back(ttft * 1e3);
      latencies.push_back((r.end - r.arrival) * 1e3);
      if (r.output > 1) tpots.push_back(tpot * 1e3);
      if (ttft > r.ttft) continue;
      if (tpot <= r.wanted_itl) ++good;
      if (100 * r.late_gaps <= r.output - 1) ++attained;
    }
    result_.offered = static_cast<std::int64_t>(requests_.size());
    result_.attainment = static_cast<double>(attained) / static_cast<double>(result_.offered);
    result_.goodput = static_cast<double>(good) / std::max(result_.duration, 1e-9);
    result_.itl_late = gaps_.empty() ? 0.0 : static_cast<double>(late) / static_cast<double>(gaps_.size());
    result_.ttft = percentiles(ttfts);
    result_.tpot = percentiles(tpots);
    result_.e2el = percentiles(latencies);
    result_.itl = percentiles(gaps_);
  }

  const SimulationOptions& options_;
  LatencyModel truth_, learnt_;
  TokenBudgetPolicy policy_;
  CountedBlocks kv_;
  Scheduler scheduler_;
  Random noise_;
  std::vector<Simulated> requests_;
  std::vector<Simulated*> ended_;
  std::vector<double> gaps_;
  SimulationResult result_;
};

}  // namespace

SimulationResult simulate(const LatencyTable& table, std::span<const SimulatedRequest> load,
                          const SimulationOptions& options, const SimulationObserver& observer) {
  return Simulation(table, load, options).run(observer);
}

nlohmann::json to_json(const SimulationResult& r) {
  const double seconds = std::max(r.duration, 1e-9);
  nlohmann::json json = {{"policy", r.policy},
                         {"duration", r.duration},
                         {"offered", r.offered},
                         {"completed", r.completed},
                         {"failed", r.offered - r.completed},
                         {"refused", r.refused},
                         {"preemptions", r.preemptions},
                         {"steps", r.steps},
                         {"shed_steps", r.shed_steps},
                         {"total_input_tokens", r.input_tokens},
                         {"total_output_tokens", r.output_tokens},
                         {"request_throughput", static_cast<double>(r.completed) / seconds},
                         {"request_goodput", r.goodput},
                         {"output_throughput", static_cast<double>(r.output_tokens) / seconds},
                         {"total_token_throughput", static_cast<double>(r.input_tokens + r.output_tokens) / seconds},
                         {"attainment", r.attainment},
                         {"late_gaps", r.itl_late},
                         {"max_concurrent_requests", r.most_running},
                         {"decision_us", r.decision_us}};
  const std::pair<const char*, const Percentiles*> metrics[] = {
      {"ttft", &r.ttft}, {"tpot", &r.tpot}, {"itl", &r.itl}, {"e2el", &r.e2el}};
  for (const auto& [name, values] : metrics) {
    json[fmt::format("mean_{}_ms", name)] = values->mean;
    json[fmt::format("median_{}_ms", name)] = values->median;
    json[fmt::format("p90_{}_ms", name)] = values->p90;
    json[fmt::format("p99_{}_ms", name)] = values->p99;
    json[fmt::format("max_{}_ms", name)] = values->most;
  }
  return json;
}

}  // namespace spear
