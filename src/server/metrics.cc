#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>
#include <mutex>

namespace spear {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Labels = std::map<std::string, std::string>;
using Buckets = Histogram::BucketBoundaries;

const Buckets kTtft = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                       1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kItl = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
const Buckets kRequest = {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
const Buckets kStepTokens = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
const Buckets kStep = {.0005, .001, .002, .003, .004, .005, .0075, .01, .015, .02, .03,
                       .05,   .075, .1,   .15,  .2,   .3,   .5,    1,   2.5,  5};
const Buckets kError = {.01, .02, .05, .1, .15, .2, .3, .5, 1, 2};

double seconds(Metrics::Time from, Metrics::Time to) { return std::chrono::duration<double>(to - from).count(); }

}  // namespace

struct Metrics::State {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  Labels labels;
  std::mutex mutex;  // of `last`
  EngineStats last;  // of the previous step: counters grow by the difference

  double model_density = 0;  // without shedding
  Gauge *running, *waiting, *usage, *density;
  Counter *queries, *hits, *preemptions, *prompt_tokens, *generation_tokens, *shed_steps;
  Histogram *ttft, *itl, *e2e, *queue, *prefill, *decode, *prompt_size, *output_size, *max_tokens, *step_tokens,
      *step_time, *prediction_error;
  prometheus::Family<Counter>*success, *refusals, *attained, *missed;

  Gauge* gauge(const char* name, const char* help) {
    return &prometheus::BuildGauge().Name(name).Help(help).Labels(labels).Register(*registry).Add({});
  }
  Counter* counter(const char* name, const char* help) {
    return &prometheus::BuildCounter().Name(name).Help(help).Labels(labels).Register(*registry).Add({});
  }
  Histogram* histogram(const char* name, const char* help, const Buckets& buckets) {
    return &prometheus::BuildHistogram().Name(name).Help(help).Labels(labels).Register(*registry).Add({}, buckets);
  }
  prometheus::Family<Counter>* family(const char* name, const char* help) {
    return &prometheus::BuildCounter().Name(name).Help(help).Labels(labels).Register(*registry);
  }
};

Metrics::Metrics(const std::string& model_name, const std::string& version, double compensator_density)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.labels = {{"model_name", model_name}, {"engine", "0"}};
  s.running = s.gauge("vllm:num_requests_running", "Requests in the batch");
  s.waiting = s.gauge("vllm:num_requests_waiting", "Requests that wait for a place");
  s.usage = s.gauge("vllm:kv_cache_usage_perc", "Share of the KV cache's blocks in use, 1 = all");
  s.queries = s.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache");
  s.hits = s.counter("vllm:prefix_cache_hits_total", "Prompt tokens found there");
  s.preemptions =
      s.counter("vllm:num_preemptions_total", "Requests that gave their blocks back and were computed again");
  s.prompt_tokens = s.counter("vllm:prompt_tokens_total", "Prompt tokens of admitted requests");
  s.generation_tokens = s.counter("vllm:generation_tokens_total", "Tokens generated");
  s.success = s.family("vllm:request_success_total", "Choices that ended, by reason");
  s.ttft = s.histogram("vllm:time_to_first_token_seconds", "Arrival to first token", kTtft);
  s.itl = s.histogram("vllm:inter_token_latency_seconds", "Between two tokens of a request", kItl);
  s.e2e = s.histogram("vllm:e2e_request_latency_seconds", "Arrival to the end", kRequest);
  s.queue =
      s.histogram("vllm:request_queue_time_seconds", "Arrival to the first scheduled part of the prompt", kRequest);
  s.prefill =
      s.histogram("vllm:request_prefill_time_seconds", "First scheduled part of the prompt to first token", kRequest);
  s.decode = s.histogram("vllm:request_decode_time_seconds", "First token to the last", kRequest);
  s.prompt_size = s.histogram("vllm:request_prompt_tokens", "Tokens of a prompt", kTokens);
  s.output_size = s.histogram("vllm:request_generation_tokens", "Tokens of an output", kTokens);
  s.max_tokens = s.histogram("vllm:request_max_num_generation_tokens", "max_tokens of a request", kTokens);
  s.step_tokens = s.histogram("vllm:iteration_tokens_total", "Tokens generated in a step", kStepTokens);
  s.step_time = s.histogram("spear:iteration_seconds", "Time of a step of the engine", kStep);
  s.prediction_error =
      s.histogram("spear:iteration_prediction_error_ratio", "|predicted - actual| / actual of a step", kError);
  s.density = s.gauge("spear:compensator_density", "Share of the compensators that are applied");
  s.density->Set(compensator_density);
  s.model_density = compensator_density;
  s.shed_steps = s.counter("spear:shed_steps_total", "Steps with fewer compensators than the model has");
  s.refusals = s.family("spear:requests_refused_total", "Requests that never reached the engine, by reason");
  s.attained = s.family("spear:slo_attained_total", "Tokens within their objective, by objective");
  s.missed = s.family("spear:slo_missed_total", "Tokens beyond their objective, by objective");
  prometheus::BuildGauge()
      .Name("spear:build_info")
      .Help("Version")
      .Register(*s.registry)
      .Add({{"version", version}})
      .Set(1);
  for (const char* reason : {"stop", "length", "abort"}) s.success->Add({{"finished_reason", reason}});
  for (const char* objective : {"ttft", "itl"}) {
    s.attained->Add({{"objective", objective}});
    s.missed->Add({{"objective", objective}});
  }
}

Metrics::~Metrics() = default;

void Metrics::admitted(Time arrival, Time admitted, Time first_token, std::int64_t prompt_tokens) {
  state_->prompt_size->Observe(static_cast<double>(prompt_tokens));
  if (admitted == Time()) return;
  state_->queue->Observe(seconds(arrival, admitted));
  state_->prefill->Observe(seconds(admitted, first_token));
}

void Metrics::token(bool first, Time arrival, Time previous, Time now, const Slo& slo) {
  const double latency = seconds(first ? arrival : previous, now);
  (first ? state_->ttft : state_->itl)->Observe(latency);
  const double objective = first ? slo.ttft_ms : slo.itl_ms;
  if (objective <= 0) return;
  auto& family = latency * 1e3 <= objective ? *state_->attained : *state_->missed;
  family.Add({{"objective", first ? "ttft" : "itl"}}).Increment();
}

void Metrics::finished(const char* reason, Time arrival, Time first_token, Time now, std::int64_t tokens,
                       std::int64_t max_tokens) {
  State& s = *state_;
  s.success->Add({{"finished_reason", reason}}).Increment();
  s.e2e->Observe(seconds(arrival, now));
  s.output_size->Observe(static_cast<double>(tokens));
  s.max_tokens->Observe(static_cast<double>(max_tokens));
  if (first_token != Time()) s.decode->Observe(seconds(first_token, now));
}

void Metrics::refused(const char* reason) { state_->refusals->Add({{"reason", reason}}).Increment(); }

void Metrics::step(double seconds, const EngineStats& stats) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  s.step_time->Observe(seconds);
  s.running->Set(static_cast<double>(stats.running));
  s.waiting->Set(static_cast<double>(stats.waiting));
  s.usage->Set(
      stats.num_blocks == 0 ? 0 : 1.0 - static_cast<double>(stats.free_blocks) / static_cast<double>(stats.num_blocks));
  const auto grow = [](Counter* counter, std::int64_t now, std::int64_t before) {
    if (now > before) counter->Increment(static_cast<double>(now - before));
  };
  grow(s.queries, stats.prefix_queries, s.last.prefix_queries);
  grow(s.hits, stats.prefix_hits, s.last.prefix_hits);
  grow(s.preemptions, stats.preemptions, s.last.preemptions);
  grow(s.prompt_tokens, stats.prompt_tokens, s.last.prompt_tokens);
  grow(s.shed_steps, stats.shed_steps, s.last.shed_steps);
  if (stats.predicted_seconds > 0) predicted(stats.predicted_seconds, stats.step_seconds);
  s.density->Set(s.model_density * stats.compensator_density);
  grow(s.generation_tokens, stats.generation_tokens, s.last.generation_tokens);
  if (stats.generation_tokens > s.last.generation_tokens) {
    s.step_tokens->Observe(static_cast<double>(stats.generation_tokens - s.last.generation_tokens));
  }
  s.last = stats;
}

void Metrics::predicted(double predicted, double actual) {
  if (actual > 0) state_->prediction_error->Observe(std::abs(predicted - actual) / actual);
}

std::string Metrics::text() const { return prometheus::TextSerializer().Serialize(state_->registry->Collect()); }

}  // namespace spear
