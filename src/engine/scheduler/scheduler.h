// Who runs next, and with how many tokens. Pure: it knows no model and no clock, so that the engine and the simulator
// run the same decisions (docs/scheduler.md).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "engine/chunk_policy.h"
#include "engine/scheduler/latency_model.h"

namespace spear {

inline constexpr double kNever = std::numeric_limits<double>::infinity();
inline constexpr std::int32_t kAnyDensity = -1;
inline constexpr double kDensityKeys = 1000;
/// Requests of one key share their steps.
inline std::int32_t density_key(double density) { return static_cast<std::int32_t>(std::lround(density * kDensityKeys)); }

/// What the scheduler knows of a request. Times are seconds on the clock of whoever calls it.
struct ScheduledRequest {
  std::uint64_t id = 0;  ///< ascending in order of arrival
  int priority = 0;      ///< higher ones go first
  double arrival = 0;
  double ttft = kNever, itl = kNever;        ///< objectives; kNever: none
  std::int32_t density_class = kAnyDensity;  ///< thousandths of the compensators that it insists on

  std::int64_t length = 0;     ///< tokens so far, prompt and output
  std::int64_t computed = 0;   ///< tokens whose keys and values are in the cache
  std::int64_t scheduled = 0;  ///< tokens of the current step
  std::int64_t generated = 0;
  double last_token = 0;  ///< when the last one came, if generated > 0

  std::int64_t missing() const { return length - computed; }  ///< to compute before the next can be sampled
  bool decoding() const { return missing() == 1 && computed > 0; }
  double first_token_deadline() const { return arrival + ttft; }
  double next_token_deadline() const { return generated > 0 ? last_token + itl : kNever; }

  // The scheduler's own notes.
  bool runs = false;       ///< or waits
  bool fresh = false;      ///< admitted in this step; whoever reads it clears it
  bool late = false;       ///< its first token cannot come in time any more
  std::int64_t level = 0;  ///< priority, raised by waiting
  double sort_deadline = 0;
};

/// The memory for keys and values.
class KvSpace {
 public:
  virtual ~KvSpace() = default;
  virtual std::int64_t free_blocks() const = 0;
  /// Blocks still needed to hold `tokens` tokens; tokens that fit into those it has.
  virtual std::int64_t blocks_missing(const ScheduledRequest& request, std::int64_t tokens) const = 0;
  virtual std::int64_t capacity(const ScheduledRequest& request) const = 0;
  /// Takes blocks until `tokens` fit; false if there are not enough, and then it keeps what it got.
  virtual bool reserve(ScheduledRequest& request, std::int64_t tokens) = 0;
  /// Takes the blocks of the longest known prefix and sets `computed`.
  virtual void match_prefix(ScheduledRequest& request) = 0;
  /// Gives all blocks back; computed is 0 then.
  virtual void drop(ScheduledRequest& request) = 0;
};

struct SchedulerOptions {
  std::int64_t max_num_seqs = 32;         ///< requests that run at the same time
  std::int64_t max_batched_tokens = 512;  ///< of a step, with a latency model
  bool exclusive = false;                 ///< steps hold decodes or prompts, never both
  bool refuse_unattainable = false;       ///< a request whose first token cannot come in time: refused, or it waits
  double decode_share = 0.85;  ///< no more requests are admitted than decode in this part of the strictest itl
  double itl_floor = 0;        ///< seconds; stricter objectives of requests are raised to it
  double aging = 15;           ///< seconds of waiting that count as one priority
  double starvation = 1;       ///< after seconds without prompt tokens, min_chunk are computed whatever it costs
  std::int64_t min_chunk = 16;
  double density = 1;              ///< part of the compensators of requests that do not insist on one
  bool shed_compensators = false;  ///< drop compensators before an objective is missed ...
  double shed_floor = 0.15;        ///< ... down to this part of them
};

/// One step: `scheduled` tokens of every request in `batch`.
struct StepPlan {
  std::span<ScheduledRequest* const> batch;
  std::span<ScheduledRequest* const> refused;  ///< out of the scheduler's hands already
  StepShape shape;
  double predicted = 0;   ///< seconds; 0 without a latency model
  double slack = kNever;  ///< seconds until the first deadline of a running request
};

struct SchedulerStats {
  std::int64_t preemptions = 0, refused = 0;
  std::int64_t steps = 0, shed_steps = 0;
  double density = 1;  ///< of the last step of requests that do not insist on one
};

/// Requests are referred to from add() until remove(), or until they are refused. Nothing is allocated by next() and
/// done().
class Scheduler {
 public:
  /// Prompt tokens by a fixed rule, first come, first served within a priority.
  Scheduler(const SchedulerOptions& options, KvSpace& kv, const ChunkPolicy& policy);
  /// Prompt tokens as objectives allow, earliest deadline first.
  Scheduler(const SchedulerOptions& options, KvSpace& kv, LatencyModel& model);

  void add(ScheduledRequest& request);
  /// Ended, whatever its state; its blocks are the caller's business.
  void remove(ScheduledRequest& request);

  const StepPlan& next(double now);
  /// After the step of the last plan, which took `seconds`.
  void done(double seconds);
  void token(ScheduledRequest& request, double now) const {
    ++request.generated;
    request.last_token = now;
  }

  std::span<ScheduledRequest* const> running() const { return running_; }
  std::span<ScheduledRequest* const> waiting() const { return waiting_; }
  const SchedulerStats& stats() const { return stats_; }
  /// Prompt tokens per second of late.
  double prefill_rate() const { return prefill_rate_; }

 private:
  struct DensityClass {
    std::int32_t key = kAnyDensity;
    std::int64_t members = 0;
    std::uint64_t last_step = 0;
    std::int64_t decodes = 0, context = 0;  // of running requests, in the current step
    double deadline = kNever;
    double last_prompt = kNever;  // when prompt tokens were last computed, or when there began to be any
  };

  Scheduler(const SchedulerOptions& options, KvSpace& kv, const ChunkPolicy* policy, LatencyModel* model);
  DensityClass& class_of(const ScheduledRequest& request);
  double time(const StepShape& shape) const { return model_ != nullptr ? model_->seconds(shape) : 0.0; }
  double time_at_most(const StepShape& shape) const { return model_ != nullptr ? model_->seconds_at_most(shape) : 0.0; }
  double density_of(const DensityClass& group) const;

  void rank(double now);
  void survey();
  void refuse_late();
  void plan_class(DensityClass& group, double now);
  void schedule_decodes(const DensityClass& group);
  void set_budget(const DensityClass& group, double now);
  void choose_density(const DensityClass& group, double now);
  void schedule_prompts(const DensityClass& group, double now);
  void separate();
  std::int64_t fit(const ScheduledRequest& request, const DensityClass& group, double now) const;
  bool schedule_chunk(ScheduledRequest& request, std::int64_t tokens);
  bool admit(ScheduledRequest& request);
  bool keeps_objectives(const ScheduledRequest& request) const;
  bool more_urgent(const ScheduledRequest& a, const ScheduledRequest& b) const;
  bool worse_to_lose(const ScheduledRequest& a, const ScheduledRequest& b) const;
  ScheduledRequest* least_urgent() const;
  void preempt(ScheduledRequest& request);
  void count_spare();

  SchedulerOptions options_;
  KvSpace& kv_;
  const ChunkPolicy* policy_;
  LatencyModel* model_;
  std::vector<ScheduledRequest*> running_, waiting_;
  std::vector<DensityClass> classes_;
  std::uint64_t step_ = 0;
  double prefill_rate_ = 0, recent_tokens_ = 0, recent_seconds_ = 0;
  double density_;
  int calm_steps_ = 0;
  bool alternate_ = false;  // exclusive, without objectives: prompts had the last step
  SchedulerStats stats_;

  // Of the current step.
  StepPlan plan_;
  StepShape shape_;
  StepShape behind_;  // exclusive: the decodes that a step of prompts has to leave time for
  double slack_ = kNever, strictest_ = kNever, others_time_ = 0;
  std::int64_t budget_ = 0;  // of the policy
  std::int64_t spare_ = 0;   // free blocks beside what admitted requests still need
  std::int64_t class_size_ = 0, class_context_ = 0;
  bool full_ = false;  // prompt tokens were left over
  std::vector<ScheduledRequest*> batch_, refused_, prompts_, candidates_, decodes_;
};

}  // namespace spear
