#include "text/stop_filter.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/random.h"

namespace spear {
namespace {

TEST(StopFilter, AnyDivisionOfTheTextGivesTheSame) {
  const std::string text = "one two three twotwo four";
  for (const std::vector<std::string>& stops : {std::vector<std::string>{"twotwo"}, {"three two"}, {"zzz"}, {"e t", "four"}, {}}) {
    std::string expected = text;
    for (const auto& stop : stops) expected = expected.substr(0, expected.find(stop));
    Random random(7);
    for (int round = 0; round < 50; ++round) {
      StopFilter filter(stops);
      std::string out;
      for (std::size_t i = 0; i < text.size();) {
        const std::size_t size = std::min<std::size_t>(1 + random.below(5), text.size() - i);
        out += filter.push(text.substr(i, size));
        i += size;
      }
      out += filter.finish();
      EXPECT_EQ(out, expected);
      EXPECT_EQ(filter.stopped(), expected != text);
    }
  }
}

TEST(StopFilter, HoldsBackWhatMayStillBecomeAStop) {
  StopFilter filter({"abc"});
  EXPECT_EQ(filter.push("xab"), "x");
  EXPECT_EQ(filter.push("d"), "abd");
  EXPECT_EQ(filter.push("a"), "");
  EXPECT_EQ(filter.finish(), "a");
  EXPECT_THROW(StopFilter({""}), Error);
}

}  // namespace
}  // namespace spear
