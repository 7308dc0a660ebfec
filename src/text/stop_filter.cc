#include "text/stop_filter.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace spear {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const auto& stop : stops_) {
    if (stop.empty()) throw usage_error("a stop string is empty", "stop", "leave it out");
  }
}

std::string StopFilter::push(std::string_view piece) {
  if (stopped_) return {};
  if (stops_.empty()) return std::string(piece);
  held_ += piece;
  std::size_t found = std::string::npos;
  for (const auto& stop : stops_) found = std::min(found, held_.find(stop));
  if (found == std::string::npos) return give(held_.size() - possible_stop());
  stopped_ = true;
  std::string text = give(found);
  held_.clear();
  return text;
}

std::string StopFilter::finish() { return give(held_.size()); }

/// Length of the longest end of the held text that begins a stop string.
std::size_t StopFilter::possible_stop() const {
  std::size_t longest = 0;
  for (const auto& stop : stops_) {
    std::size_t length = std::min(stop.size() - 1, held_.size());
    while (length > longest && !held_.ends_with(std::string_view(stop).substr(0, length))) --length;
    longest = std::max(longest, length);
  }
  return longest;
}

std::string StopFilter::give(std::size_t count) {
  std::string text = held_.substr(0, count);
  held_.erase(0, count);
  return text;
}

}  // namespace spear
