#include "engine/engine_thread.h"

#include <pthread.h>

#include <algorithm>

#include "base/log.h"

namespace spear {
namespace {

using Clock = std::chrono::steady_clock;

std::int64_t nanoseconds(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

TokenEvent failure(Ticket ticket, const Error& error) {
  TokenEvent event;
  event.ticket = ticket;
  event.finished = FinishReason::failed;
  event.error = error;
  event.time = Clock::now();
  return event;
}

}  // namespace

EngineThread::EngineThread(Engine& engine, Deliver deliver, Observe observe)
    : engine_(engine),
      deliver_(std::move(deliver)),
      observe_(std::move(observe)),
      stats_(engine.stats()),
      thread_([this] {
        pthread_setname_np(pthread_self(), "spear-engine");  // for top, and whoever wants to see it stand still
        run();
      }) {}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

Ticket EngineThread::submit(Request request) {
  if (request.arrival == Clock::time_point()) request.arrival = Clock::now();
  const Ticket ticket = ++last_ticket_;
  if (active_.load(std::memory_order_relaxed) == 0) progress_.store(nanoseconds(Clock::now()));
  active_.fetch_add(1, std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    submitted_.emplace_back(ticket, std::move(request));
  }
  wake_.notify_one();
  return ticket;
}

void EngineThread::cancel(Ticket ticket) {
  {
    const std::lock_guard lock(mutex_);
    // A request that the engine has not seen yet is first added and then cancelled: one way out for all.
    cancelled_.push_back(ticket);
  }
  wake_.notify_one();
}

EngineStats EngineThread::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

double EngineThread::seconds_stuck() const {
  if (active() == 0) return 0;
  return static_cast<double>(nanoseconds(Clock::now()) - progress_.load()) * 1e-9;
}

/// False when the thread has to end.
bool EngineThread::take_inbox() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return stop_ || !submitted_.empty() || !cancelled_.empty() || !engine_.idle(); });
  adding_.swap(submitted_);
  cancelling_.swap(cancelled_);
  return !stop_;
}

void EngineThread::run() {
  while (take_inbox()) {
    std::vector<TokenEvent> events;
    for (auto& [ticket, request] : adding_) add(ticket, std::move(request), events);
    adding_.clear();
    for (const Ticket ticket : cancelling_) {
      if (const auto found = ids_.find(ticket); found != ids_.end()) engine_.cancel(found->second);
    }
    cancelling_.clear();
    if (!engine_.idle()) step(events);
    {
      const std::lock_guard lock(mutex_);
      stats_ = engine_.stats();
    }
    if (!events.empty()) deliver_(std::move(events));
  }
}

void EngineThread::add(Ticket ticket, Request request, std::vector<TokenEvent>& events) {
  try {
    const RequestId id = engine_.add(std::move(request));
    tickets_.emplace(id, ticket);
    ids_.emplace(ticket, id);
  } catch (const Error& error) {
    active_.fetch_sub(1, std::memory_order_relaxed);
    events.push_back(failure(ticket, error));
  }
}

void EngineThread::step(std::vector<TokenEvent>& events) {
  const auto began = Clock::now();
  try {
    const auto outputs = engine_.step();
    const auto now = Clock::now();
    for (const StepOutput& output : outputs) {
      TokenEvent& event = events.emplace_back();
      event.ticket = tickets_.at(output.id);
      event.token = output.token;
      event.finished = output.finished;
      if (output.error != nullptr) event.error = *output.error;
      event.logprobs.assign(output.logprobs.begin(), output.logprobs.end());
      event.prompt_logprobs.assign(output.prompt_logprobs.begin(), output.prompt_logprobs.end());
      event.cached_tokens = output.cached_tokens;
      event.compensator_density = output.compensator_density;
      event.admitted = output.admitted;
      event.time = now;
      if (output.finished) end(event.ticket);
    }
  } catch (const Error& error) {
    fail_all(error, events);
  } catch (const std::exception& error) {  // out of memory, say: these requests fail, the next ones may not
    fail_all(failed(error.what(), "engine"), events);
  }
  progress_.store(nanoseconds(Clock::now()));
  if (observe_) observe_(std::chrono::duration<double>(Clock::now() - began).count(), engine_.stats());
}

/// A step that threw says nothing about who caused it: every request ends, and the engine goes on with an empty batch.
void EngineThread::fail_all(const Error& error, std::vector<TokenEvent>& events) {
  log::error("a step of the engine failed, {} requests with it: {}", ids_.size(), error.what());
  for (const auto& [ticket, id] : ids_) {
    engine_.cancel(id);
    events.push_back(failure(ticket, error));
    active_.fetch_sub(1, std::memory_order_relaxed);
  }
  ids_.clear();
  // Their cancellations are reported by the next step: to nobody.
  for (int i = 0; i < 2 && !engine_.idle(); ++i) engine_.step();
  tickets_.clear();
}

void EngineThread::end(Ticket ticket) {
  const auto found = ids_.find(ticket);
  tickets_.erase(found->second);
  ids_.erase(found);
  active_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace spear
