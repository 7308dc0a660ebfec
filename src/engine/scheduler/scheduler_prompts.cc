// The half of a decision that is about prompts: how many of their tokens, whose, and who may come in.
#include <algorithm>

#include "engine/scheduler/scheduler.h"

namespace spear {
namespace {

/// Parts of the compensators that shedding steps through.
constexpr double kDensities[] = {1.0, 0.8, 0.6, 0.38, 0.25, 0.15, 0.0};
constexpr int kCalmSteps = 16;  // without pressure, before some come back

}  // namespace

/// As many compensators as objectives leave time for: at once fewer, slowly more.
void Scheduler::choose_density(const DensityClass& group, double now) {
  shape_.density = density_of(group);
  if (group.key != kAnyDensity || !options_.shed_compensators) return;
  double first = kNever, last = 0;
  std::int64_t first_tokens = 0, tokens = 0;
  const auto count = [&](const ScheduledRequest& request) {
    if (request.density_class != group.key || request.late || request.generated > 0) return;
    tokens += request.missing();
    const double deadline = request.first_token_deadline();
    if (deadline < first) first_tokens = request.missing();
    first = std::min(first, deadline);
    last = std::max(last, deadline);
  };
  for (const ScheduledRequest* request : prompts_) count(*request);
  for (const ScheduledRequest* request : waiting_) count(*request);
  const auto enough = [&](double density) {
    StepShape step{shape_.decodes, shape_.decode_context, 0, 0, density};
    if (tokens > 0) {
      // The chunk that fits, by halving: near enough to judge the rate by.
      step.prefill = std::min(tokens, options_.max_batched_tokens);
      while (step.prefill > 1 && time_at_most(step) > slack_) step.prefill /= 2;
    }
    const double seconds = time_at_most(step);
    if (seconds > slack_) return false;
    if (tokens == 0) return true;
    const double rate = static_cast<double>(step.prefill) / seconds;
    return now + static_cast<double>(first_tokens) / rate <= first &&
           (last == kNever || now + static_cast<double>(tokens) / rate <= last);
  };
  const double most = options_.density;
  double wanted = std::min(options_.shed_floor, most), above = most;
  for (const double step : kDensities) {
    const double density = std::min(step, most);
    if (density > density_) above = density;  // they descend: the next one up is the last of these
  }
  for (const double step : kDensities) {
    const double density = std::min(step, most);
    if (density <= options_.shed_floor) break;
    if (!enough(density)) continue;
    wanted = density;
    break;
  }
  if (wanted > density_) {
    if (++calm_steps_ < kCalmSteps) return;
    wanted = std::min(wanted, above);
  }
  calm_steps_ = 0;
  density_ = shape_.density = wanted;
}

/// Prompt tokens of `request` that the step still has time for.
std::int64_t Scheduler::fit(const ScheduledRequest& request, const DensityClass& group, double now) const {
  if (policy_ != nullptr) return std::min(request.missing(), budget_);
  const std::int64_t most = std::min(request.missing(), options_.max_batched_tokens - shape_.rows());
  if (most <= 0) return 0;
  const auto fits = [&](std::int64_t tokens) {
    StepShape step = shape_;
    step.prefill += tokens;
    step.prefill_context = (shape_.prefill_context * static_cast<double>(shape_.prefill) +
                            static_cast<double>(request.computed * tokens)) /
                           static_cast<double>(step.prefill);
    double seconds = time_at_most(step);
    if (behind_.decodes > 0) {
      // The prompt may be read to its end by then.
      StepShape next = behind_;
      ++next.decodes;
      next.decode_context += request.length;
      seconds += time_at_most(next);
    }
    return seconds <= slack_;
  };
  if (slack_ == kNever || fits(most)) return most;
  std::int64_t low = 0, high = most;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  const bool starved = low == 0 && shape_.prefill == 0 && now - group.last_prompt > options_.starvation;
  return starved ? std::min(most, options_.min_chunk) : low;
}

/// Up to `tokens` more tokens, as many as there are blocks for; false if there are none.
bool Scheduler::schedule_chunk(ScheduledRequest& request, std::int64_t tokens) {
  if (!kv_.reserve(request, request.computed + tokens)) tokens = kv_.capacity(request) - request.computed;
  if (tokens <= 0) return false;
  request.scheduled = tokens;
  const auto sum = static_cast<double>(shape_.prefill + tokens);
  shape_.prefill_context = (shape_.prefill_context * static_cast<double>(shape_.prefill) +
                            static_cast<double>(request.computed) * static_cast<double>(tokens)) /
                           sum;
  shape_.prefill += tokens;
  if (behind_.decodes > 0 && tokens == request.missing()) {
    ++behind_.decodes;
    behind_.decode_context += request.length;
  }
  budget_ -= tokens;
  return true;
}

/// Admitted prompts and those that wait, most urgent first; who waits is admitted when it gets tokens in this step.
void Scheduler::schedule_prompts(const DensityClass& group, double now) {
  const auto urgency = [this](const ScheduledRequest* a, const ScheduledRequest* b) { return more_urgent(*a, *b); };
  const auto heap_order = [&](const ScheduledRequest* a, const ScheduledRequest* b) { return urgency(b, a); };
  std::sort(prompts_.begin(), prompts_.end(), urgency);
  for (ScheduledRequest* request : waiting_) {
    if (request->density_class == group.key) candidates_.push_back(request);
  }
  std::make_heap(candidates_.begin(), candidates_.end(), heap_order);
  if (!candidates_.empty()) count_spare();
  std::size_t admitted = prompts_.size(), next = 0;
  bool open = true;
  while (true) {
    ScheduledRequest* request = next < admitted ? prompts_[next] : nullptr;
    if (open && !candidates_.empty() && (request == nullptr || urgency(candidates_.front(), request))) {
      request = candidates_.front();
      // No slot and no blocks for who has no tokens; and whoever is behind one that does not fit waits with it.
      if (fit(*request, group, now) <= 0 || !admit(*request)) {
        open = false;
        continue;
      }
      std::pop_heap(candidates_.begin(), candidates_.end(), heap_order);
      candidates_.pop_back();
      prompts_.push_back(request);
    } else if (request != nullptr) {
      ++next;
      if (!request->runs) continue;  // preempted meanwhile
    } else {
      return;
    }
    const std::int64_t tokens = fit(*request, group, now);
    if (tokens <= 0) return;
    schedule_chunk(*request, tokens);
    full_ = tokens < request->missing();
    if (policy_ != nullptr ? budget_ <= 0 : full_) return;
  }
}

void Scheduler::count_spare() {
  spare_ = kv_.free_blocks();
  for (const ScheduledRequest* request : running_) spare_ -= kv_.blocks_missing(*request, request->length);
}

/// Whether the strictest objective survives one more decode.
bool Scheduler::keeps_objectives(const ScheduledRequest& request) const {
  const double strictest = std::min(strictest_, request.itl);
  if (model_ == nullptr || strictest == kNever || class_size_ == 0) return true;
  const double density = options_.shed_compensators && request.density_class == kAnyDensity
                             ? std::min(shape_.density, options_.shed_floor)
                             : shape_.density;
  const double decode = time_at_most({class_size_ + 1, class_context_ + request.length, 0, 0, density});
  return decode + others_time_ <= strictest * options_.decode_share;
}

/// A slot and free blocks for all its tokens, beside what admitted requests still need. A higher priority takes them
/// from a lower one.
bool Scheduler::admit(ScheduledRequest& request) {
  if (!keeps_objectives(request)) return false;
  while (true) {
    if (static_cast<std::int64_t>(running_.size()) < options_.max_num_seqs) {
      const std::int64_t before = kv_.free_blocks();
      kv_.match_prefix(request);
      spare_ -= before - kv_.free_blocks();
      const std::int64_t needed = kv_.blocks_missing(request, request.length);
      if (needed <= spare_ || running_.empty()) {  // it fits alone, or it would not have been added
        spare_ -= needed;
        break;
      }
      const std::int64_t held = kv_.free_blocks();
      kv_.drop(request);
      spare_ += kv_.free_blocks() - held;
    }
    ScheduledRequest* victim = running_.empty() ? nullptr : least_urgent();
    if (victim == nullptr || victim->priority >= request.priority) return false;
    preempt(*victim);
    count_spare();
  }
  request.runs = request.fresh = true;
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &request));
  running_.push_back(&request);
  strictest_ = std::min(strictest_, request.itl);
  ++class_size_;
  class_context_ += request.length;
  return true;
}

}  // namespace spear
