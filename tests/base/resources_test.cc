#include "base/resources.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstdlib>

namespace spear {
namespace {

TEST(Resources, FreedMemoryIsGivenOutAgain) {
#if defined(SPEAR_SANITIZED)
  GTEST_SKIP() << "sanitizers have a malloc of their own";
#endif
  constexpr std::size_t kBytes = std::size_t{64} << 20, kPage = 4096;
  const auto new_pages = [] {
    const auto faults = [] {
      rusage usage{};
      getrusage(RUSAGE_SELF, &usage);
      return usage.ru_minflt;
    };
    const long before = faults();
    void* const block = std::malloc(kBytes);
    auto* const bytes = static_cast<volatile char*>(block);  // or the compiler leaves all of it out
    for (std::size_t i = 0; i < kBytes; i += kPage) bytes[i] = 1;
    std::free(block);
    return faults() - before;
  };
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);  // pages of 2 MB would hardly be counted
  new_pages();
  EXPECT_GT(new_pages(), static_cast<long>(kBytes / kPage / 2));  // as it is by itself
  keep_freed_memory();
  new_pages();
  EXPECT_LT(new_pages(), 100);
}

}  // namespace
}  // namespace spear
