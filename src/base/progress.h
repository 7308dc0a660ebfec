// Progress with an ETA: one line that is redrawn on a terminal, plain lines every few seconds elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace spear {

class Progress {
 public:
  /// `total` units of work; `quiet` prints nothing.
  Progress(std::string label, std::int64_t total, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` units are finished; `detail` (loss, speed, ...) is shown after the ETA.
  void update(std::int64_t done, const std::string& detail = {});

  /// Ends the line; called by the destructor if not before.
  void finish();

  double seconds() const;

  /// Silences every Progress of the process (--quiet).
  static void set_quiet(bool quiet);

 private:
  void print(bool last);

  std::string label_, detail_;
  std::int64_t total_, done_ = 0, first_done_ = 0;
  bool quiet_, terminal_, finished_ = false;
  std::chrono::steady_clock::time_point start_, last_print_;
};

/// "1 h 02 min", "3 min 05 s", "4.2 s".
std::string format_duration(double seconds);

/// "83.4 MB" (decimal units, as in the budget).
std::string format_bytes(double bytes);

}  // namespace spear
