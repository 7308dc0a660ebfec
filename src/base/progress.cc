#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/resources.h"

namespace spear {
namespace {

bool all_quiet = false;
constexpr auto kTerminalInterval = std::chrono::milliseconds(200);
constexpr auto kPlainInterval = std::chrono::seconds(15);

}  // namespace

void Progress::set_quiet(bool quiet) { all_quiet = quiet; }

Progress::Progress(std::string label, std::int64_t total, bool quiet)
    : label_(std::move(label)),
      total_(total),
      quiet_(quiet || all_quiet),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()),
      last_print_(start_) {}

Progress::~Progress() { finish(); }

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::update(std::int64_t done, const std::string& detail) {
  done_ = done;
  detail_ = detail;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_print_ < (terminal_ ? std::chrono::duration_cast<std::chrono::milliseconds>(kTerminalInterval)
                                     : std::chrono::duration_cast<std::chrono::milliseconds>(kPlainInterval))) {
    return;
  }
  last_print_ = now;
  print(false);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  print(true);
}

void Progress::print(bool last) {
  if (quiet_) return;
  const double elapsed = seconds();
  std::string time = format_duration(elapsed);
  if (!last && done_ > 0) {
    time += ", ETA " + format_duration(elapsed / static_cast<double>(done_) * static_cast<double>(total_ - done_));
  }
  const std::string line = fmt::format("{}: {}/{} ({}, {}){}{}", label_, done_, total_, time,
                                       format_bytes(static_cast<double>(resident_bytes())),
                                       detail_.empty() ? "" : " ", detail_);
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

std::string format_duration(double seconds) {
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{} min {:02d} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02d} min", whole / 3600, whole % 3600 / 60);
}

std::string format_bytes(double bytes) {
  if (bytes < 1e3) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1e6) return fmt::format("{:.1f} kB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

}  // namespace spear
