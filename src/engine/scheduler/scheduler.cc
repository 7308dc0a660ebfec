#include "engine/scheduler/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace spear {
namespace {

const SchedulerOptions& checked(const SchedulerOptions& options) {
  const auto require = [](bool good, const char* name) {
    if (!good) throw usage_error("a number that makes no sense", name, "see docs/scheduler.md");
  };
  require(options.max_num_seqs >= 1, "max_num_seqs");
  require(options.max_batched_tokens >= 1, "max_batched_tokens");
  require(options.decode_share > 0 && options.decode_share <= 1, "decode_share");
  require(options.itl_floor >= 0, "itl_floor");
  require(options.aging > 0, "aging");
  require(options.starvation > 0, "starvation");
  require(options.min_chunk >= 1, "min_chunk");
  require(options.density >= 0 && options.density <= 1, "density");
  require(options.shed_floor >= 0 && options.shed_floor <= 1, "shed_floor");
  return options;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, KvSpace& kv, const ChunkPolicy* policy, LatencyModel* model)
    : options_(checked(options)), kv_(kv), policy_(policy), model_(model), density_(options.density) {
  stats_.density = density_;
  classes_.push_back({});
  if (model_ == nullptr) return;
  const StepShape largest{0, 0, options_.max_batched_tokens, 0, density_};
  prefill_rate_ = static_cast<double>(largest.prefill) / std::max(time(largest), 1e-9);
}

Scheduler::Scheduler(const SchedulerOptions& options, KvSpace& kv, const ChunkPolicy& policy)
    : Scheduler(options, kv, &policy, nullptr) {}
Scheduler::Scheduler(const SchedulerOptions& options, KvSpace& kv, LatencyModel& model)
    : Scheduler(options, kv, nullptr, &model) {}

Scheduler::DensityClass& Scheduler::class_of(const ScheduledRequest& request) {
  return *std::find_if(classes_.begin(), classes_.end(),
                       [&](const DensityClass& group) { return group.key == request.density_class; });
}

double Scheduler::density_of(const DensityClass& group) const {
  return group.key == kAnyDensity ? density_ : group.key / kDensityKeys;
}

void Scheduler::add(ScheduledRequest& request) {
  // Without shedding, everybody gets the same part of them.
  if (!options_.shed_compensators && request.density_class == density_key(density_)) request.density_class = kAnyDensity;
  if (model_ != nullptr && request.itl < kNever) {
    // What even a request alone would miss must not stop the others.
    const double alone = time_at_most({1, request.length, 0, 0, density_}) / options_.decode_share;
    request.itl = std::max({request.itl, alone, options_.itl_floor});
  }
  const auto known = std::find_if(classes_.begin(), classes_.end(),
                                  [&](const DensityClass& group) { return group.key == request.density_class; });
  if (known == classes_.end()) classes_.push_back({request.density_class});
  ++class_of(request).members;
  request.runs = false;
  const std::size_t all = running_.size() + waiting_.size() + 1;
  for (auto* list : {&running_, &waiting_, &batch_, &refused_, &prompts_, &candidates_, &decodes_}) {
    if (list->capacity() < all) list->reserve(2 * all);
  }
  waiting_.push_back(&request);
}

void Scheduler::remove(ScheduledRequest& request) {
  --class_of(request).members;
  auto& list = request.runs ? running_ : waiting_;
  list.erase(std::find(list.begin(), list.end(), &request));
}

/// Order among those that wait for their first token.
bool Scheduler::more_urgent(const ScheduledRequest& a, const ScheduledRequest& b) const {
  if (a.level != b.level) return a.level > b.level;
  if (a.late != b.late) return b.late;
  if (a.sort_deadline != b.sort_deadline) return a.sort_deadline < b.sort_deadline;
  return a.id < b.id;
}

/// Order of preemption. It never changes while both live, so that two requests cannot push each other out in turn.
bool Scheduler::worse_to_lose(const ScheduledRequest& a, const ScheduledRequest& b) const {
  if (a.priority != b.priority) return a.priority > b.priority;
  const double deadline_a = model_ != nullptr ? a.first_token_deadline() : 0;
  const double deadline_b = model_ != nullptr ? b.first_token_deadline() : 0;
  if (deadline_a != deadline_b) return deadline_a < deadline_b;
  return a.id < b.id;
}

ScheduledRequest* Scheduler::least_urgent() const {
  return *std::max_element(running_.begin(), running_.end(),
                           [this](const auto* a, const auto* b) { return worse_to_lose(*a, *b); });
}

void Scheduler::rank(double now) {
  const auto note = [&](ScheduledRequest& request) {
    request.level = request.priority;
    if (model_ == nullptr) return;
    request.level += static_cast<std::int64_t>(std::max(0.0, now - request.arrival) / options_.aging);
    request.sort_deadline = request.first_token_deadline();
    request.late =
        request.generated == 0 && now + static_cast<double>(request.missing()) / prefill_rate_ > request.sort_deadline;
  };
  for (ScheduledRequest* request : waiting_) note(*request);
  for (ScheduledRequest* request : running_) {
    request->scheduled = 0;
    if (!request->decoding()) note(*request);
  }
}

void Scheduler::refuse_late() {
  if (model_ == nullptr || !options_.refuse_unattainable) return;
  for (ScheduledRequest* request : waiting_) {
    if (!request->late) continue;
    refused_.push_back(request);
    --class_of(*request).members;
  }
  if (refused_.empty()) return;
  std::erase_if(waiting_, [](const ScheduledRequest* request) { return request->late; });
  stats_.refused += static_cast<std::int64_t>(refused_.size());
}

/// What each class has to decode.
void Scheduler::survey() {
  for (DensityClass& group : classes_) {
    group.decodes = group.context = 0;
    group.deadline = kNever;
  }
  strictest_ = kNever;
  for (const ScheduledRequest* request : running_) {
    strictest_ = std::min(strictest_, request->itl);
    if (!request->decoding()) continue;
    DensityClass& group = class_of(*request);
    ++group.decodes;
    group.context += request->computed;
    group.deadline = std::min(group.deadline, request->next_token_deadline());
  }
}

const StepPlan& Scheduler::next(double now) {
  batch_.clear();
  refused_.clear();
  plan_ = {};
  shape_ = {};
  ++step_;
  rank(now);
  refuse_late();
  survey();
  while (true) {
    // One density per step; the class that waited longest goes first.
    const std::uint64_t before = step_;
    for (std::size_t tried = 0; tried < classes_.size() && batch_.empty(); ++tried) {
      DensityClass* oldest = nullptr;
      for (DensityClass& group : classes_) {
        if (group.last_step >= before || group.members == 0) continue;
        if (oldest == nullptr || group.last_step < oldest->last_step) oldest = &group;
      }
      if (oldest == nullptr) break;
      oldest->last_step = before;
      plan_class(*oldest, now);
    }
    if (!batch_.empty() || running_.size() < 2) break;
    // Only prompts run, and none of them can get a block: one gives its blocks to the others.
    preempt(*least_urgent());
    ++step_;
  }
  if (batch_.empty() && running_.size() == 1) plan_class(class_of(*running_.front()), now);
  if (!batch_.empty()) ++stats_.steps;
  plan_.batch = batch_;
  plan_.refused = refused_;
  plan_.shape = shape_;
  plan_.predicted = batch_.empty() ? 0.0 : time(shape_);
  plan_.slack = slack_;
  return plan_;
}

void Scheduler::plan_class(DensityClass& group, double now) {
  shape_ = behind_ = {};
  candidates_.clear();
  full_ = false;
  if (group.last_prompt == kNever) group.last_prompt = now;
  schedule_decodes(group);
  set_budget(group, now);
  const bool separate_steps = options_.exclusive && model_ != nullptr && shape_.decodes > 0;
  if (separate_steps) {
    behind_ = shape_;
    shape_.decodes = shape_.decode_context = 0;
  }
  if (!separate_steps || slack_ < kNever || !alternate_) schedule_prompts(group, now);
  if (separate_steps) separate();
  batch_.clear();
  for (ScheduledRequest* request : running_) {
    if (request->scheduled > 0) batch_.push_back(request);
  }
  if (batch_.empty()) return;
  if (shape_.prefill > 0 || (prompts_.empty() && candidates_.empty())) group.last_prompt = now;
  if (group.key != kAnyDensity) return;
  stats_.density = density_;
  if (density_ < options_.density) ++stats_.shed_steps;
}

/// Exclusive batches: prompts if it was worth the while, or the decodes.
void Scheduler::separate() {
  std::int64_t wanted = 0;
  for (const ScheduledRequest* request : prompts_) wanted += request->runs ? request->missing() : 0;
  const bool prompts_go = shape_.prefill > 0 && shape_.prefill >= std::min(options_.min_chunk, wanted);
  alternate_ = prompts_go;
  for (ScheduledRequest* request : prompts_go ? decodes_ : prompts_) request->scheduled = 0;
  if (prompts_go) return;
  shape_ = {0, 0, 0, 0, shape_.density};
  for (const ScheduledRequest* request : decodes_) {
    if (request->scheduled == 0) continue;  // preempted
    ++shape_.decodes;
    shape_.decode_context += request->computed;
  }
}

void Scheduler::schedule_decodes(const DensityClass& group) {
  decodes_.clear();
  for (ScheduledRequest* request : running_) {
    if (request->density_class == group.key && request->decoding()) decodes_.push_back(request);
  }
  for (ScheduledRequest* request : decodes_) {
    while (request->runs && !kv_.reserve(*request, request->length)) preempt(*least_urgent());
    if (!request->runs) continue;
    request->scheduled = 1;
    ++shape_.decodes;
    shape_.decode_context += request->computed;
  }
  // They may come back in this step, as prompts.
  std::erase_if(decodes_, [](const ScheduledRequest* request) { return !request->runs; });
}

void Scheduler::set_budget(const DensityClass& group, double now) {
  class_size_ = class_context_ = 0;
  prompts_.clear();
  for (ScheduledRequest* request : running_) {
    if (request->density_class != group.key) continue;
    ++class_size_;
    class_context_ += request->length;
    if (request->scheduled == 0) prompts_.push_back(request);
  }
  if (policy_ != nullptr) {
    StepLoad load{shape_.decodes, shape_.decode_context, 0, 0, static_cast<std::int64_t>(waiting_.size())};
    for (const ScheduledRequest* request : prompts_) {
      if (load.prefill_tokens == 0) load.prefill_context = request->computed;
      load.prefill_tokens += request->missing();
    }
    budget_ = std::max<std::int64_t>(policy_->prefill_tokens(load), shape_.decodes == 0 ? 1 : 0);
    shape_.density = density_of(group);
    slack_ = kNever;
    return;
  }
  others_time_ = 0;
  slack_ = group.deadline - now;
  for (const DensityClass& other : classes_) {
    if (&other == &group || other.decodes == 0) continue;
    const double needed = time_at_most({other.decodes, other.context, 0, 0, density_of(other)});
    others_time_ += needed;
    slack_ = std::min(slack_, other.deadline - now - needed);
  }
  choose_density(group, now);
}

/// Back to those that wait, without its blocks; its tokens will be computed again.
void Scheduler::preempt(ScheduledRequest& request) {
  if (request.scheduled > 0 && request.decoding()) {
    if (shape_.decodes > 0) --shape_.decodes;
    shape_.decode_context -= std::min(shape_.decode_context, request.computed);
  } else if (request.scheduled > 0) {
    shape_.prefill -= std::min(shape_.prefill, request.scheduled);
    budget_ += request.scheduled;
  }
  request.scheduled = 0;
  request.runs = false;
  kv_.drop(request);
  running_.erase(std::find(running_.begin(), running_.end(), &request));
  waiting_.push_back(&request);
  ++stats_.preemptions;
}

void Scheduler::done(double seconds) {
  if (model_ == nullptr || batch_.empty() || !(seconds > 0)) return;
  model_->observe(shape_, seconds);
  if (shape_.prefill == 0 || !full_) return;  // a step that had too little to do says nothing about the rate
  recent_tokens_ = 0.95 * recent_tokens_ + static_cast<double>(shape_.prefill);
  recent_seconds_ = 0.95 * recent_seconds_ + seconds;
  prefill_rate_ = recent_tokens_ / recent_seconds_;
}

}  // namespace spear
