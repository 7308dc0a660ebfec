// Prometheus metrics under vLLM's names, so that its dashboards fit, and a few of our own.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/request.h"

namespace spear {

/// Thread-safe. Times are of the steady clock; the epoch means "not yet".
class Metrics {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Metrics(const std::string& model_name, const std::string& version, double compensator_density);
  ~Metrics();

  void admitted(Time arrival, Time admitted, Time first_token, std::int64_t prompt_tokens);
  /// A token that a client gets; counts into attainment where the request, or the server, has an objective.
  void token(bool first, Time arrival, Time previous, Time now, const Slo& slo);
  void finished(const char* reason, Time arrival, Time first_token, Time now, std::int64_t tokens,
                std::int64_t max_tokens);
  void refused(const char* reason);  ///< before it reached the engine
  /// After a step of the engine.
  void step(double seconds, const EngineStats& stats);
  /// Seconds that the scheduler had predicted for the step that took `actual`.
  void predicted(double predicted, double actual);

  /// The text format.
  std::string text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace spear
