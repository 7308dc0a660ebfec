// Stop strings in text that arrives piece by piece.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace spear {

/// Holds text back for as long as it could still become a stop string.
class StopFilter {
 public:
  StopFilter() = default;
  /// Throws Error(usage) when a stop string is empty.
  explicit StopFilter(std::vector<std::string> stops);

  /// The text that is certain now. Once a stop string is complete, what came before it is given out, the stop string
  /// and everything behind it is dropped, and stopped() is true.
  std::string push(std::string_view piece);
  /// What is still held, at the end of the text.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::size_t possible_stop() const;
  std::string give(std::size_t count);

  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace spear
