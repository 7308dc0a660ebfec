// An engine on a thread of its own: requests go in from any thread, what happened to them comes out step by step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace spear {

/// Names a request from submit() on.
using Ticket = std::uint64_t;

/// What a step did for one request; owns everything, unlike StepOutput.
struct TokenEvent {
  Ticket ticket = 0;
  std::int32_t token = -1;  ///< the new token; -1: none
  std::optional<FinishReason> finished;
  std::optional<Error> error;  ///< why, with FinishReason::failed
  std::vector<TokenLogprob> logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;  ///< with the first event, if they were asked for
  std::int64_t cached_tokens = 0;
  double compensator_density = 1;  ///< see StepOutput
  std::chrono::steady_clock::time_point time = {};      ///< end of the step
  std::chrono::steady_clock::time_point admitted = {};  ///< when its prompt was first scheduled
};

class EngineThread {
 public:
  /// Called on the engine's thread after every step that did something; must be quick and must not throw.
  using Deliver = std::function<void(std::vector<TokenEvent>)>;
  /// Seconds of a step and the engine's state after it; the same rules.
  using Observe = std::function<void(double, const EngineStats&)>;

  /// `engine` is used by this thread alone from here on, until the destructor has returned.
  EngineThread(Engine& engine, Deliver deliver, Observe observe = {});
  /// Ends after the current step; requests that still run get no further event.
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  /// Any thread. Errors of Engine::add arrive as the request's only event, with FinishReason::failed.
  Ticket submit(Request request);
  /// Any thread. The request's blocks are free before the next step; its last event says cancelled, unless it had
  /// ended before. Unknown tickets are ignored.
  void cancel(Ticket ticket);

  /// Any thread: as of the last step.
  EngineStats stats() const;
  /// Any thread: requests that were submitted and have not ended.
  std::int64_t active() const { return active_.load(std::memory_order_relaxed); }
  /// Any thread: for how long the engine has had work and ended no step, in seconds; 0 when it has none.
  double seconds_stuck() const;

 private:
  void run();
  bool take_inbox();
  void add(Ticket ticket, Request request, std::vector<TokenEvent>& events);
  void step(std::vector<TokenEvent>& events);
  void fail_all(const Error& error, std::vector<TokenEvent>& events);
  void end(Ticket ticket);

  Engine& engine_;
  Deliver deliver_;
  Observe observe_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::pair<Ticket, Request>> submitted_;  // guarded by mutex_, like the next three
  std::vector<Ticket> cancelled_;
  EngineStats stats_;
  bool stop_ = false;
  std::atomic<Ticket> last_ticket_{0};
  std::atomic<std::int64_t> active_{0};
  std::atomic<std::int64_t> progress_{0};  // nanoseconds of the steady clock: end of the last step, or new work

  // Of the engine's thread alone.
  std::vector<std::pair<Ticket, Request>> adding_;
  std::vector<Ticket> cancelling_;
  std::unordered_map<RequestId, Ticket> tickets_;
  std::unordered_map<Ticket, RequestId> ids_;
  std::thread thread_;
};

}  // namespace spear
