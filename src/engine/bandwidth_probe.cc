#include "engine/bandwidth_probe.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

namespace spear {
namespace {

constexpr std::size_t kBytes = std::size_t{512} << 20;
constexpr int kRepeats = 4;

/// An anonymous mapping, touched by the threads that will read it.
class Region {
 public:
  Region(bool huge_pages, ThreadPool& pool)
      : data_(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (data_ == MAP_FAILED) {
      throw out_of_resources("512 MiB for the bandwidth probe could not be mapped", "bench", "free some memory");
    }
    madvise(data_, kBytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    pool.parallel_for(kBytes, 1 << 20, [this](std::int64_t begin, std::int64_t end) {
      std::memset(static_cast<char*>(data_) + begin, 1, static_cast<std::size_t>(end - begin));
    });
  }
  ~Region() { munmap(data_, kBytes); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  const std::uint64_t* words() const { return static_cast<const std::uint64_t*>(data_); }

 private:
  void* data_;
};

#if defined(__x86_64__) && !defined(SPEAR_SANITIZED)
#define SPEAR_WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), optimize("O3")))
#else
#define SPEAR_WIDE
#endif

/// Sum of [begin, end) words read as kStreams parallel streams; the sum keeps the reads alive.
template <int kStreams>
inline __attribute__((always_inline)) std::uint64_t sum_streams(const std::uint64_t* data, std::int64_t count) {
  const std::int64_t length = count / kStreams / 32 * 32;
  std::uint64_t sums[32] = {};
  for (std::int64_t i = 0; i < length; i += 32) {
    for (int s = 0; s < kStreams; ++s) {
      const std::uint64_t* const line = data + s * length + i;
      __builtin_prefetch(line + 512);
      for (int j = 0; j < 32; ++j) sums[j] += line[j];
    }
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t part : sums) sum += part;
  return sum;
}

SPEAR_WIDE std::uint64_t sum_1(const std::uint64_t* data, std::int64_t count) { return sum_streams<1>(data, count); }
SPEAR_WIDE std::uint64_t sum_4(const std::uint64_t* data, std::int64_t count) { return sum_streams<4>(data, count); }
SPEAR_WIDE std::uint64_t sum_8(const std::uint64_t* data, std::int64_t count) { return sum_streams<8>(data, count); }

}  // namespace

double probe_read_bandwidth(int threads) {
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(threads);
  double best = 0;
  volatile std::uint64_t sink = 0;
  for (const bool huge_pages : {false, true}) {
    const Region region(huge_pages, pool);
    for (const auto sum : {sum_1, sum_4, sum_8}) {
      for (int repeat = 0; repeat < kRepeats; ++repeat) {
        std::vector<std::uint64_t> sums(static_cast<std::size_t>(pool.size()) * 8);  // one cache line each
        const auto start = Clock::now();
        pool.run([&](int thread) {
          const std::int64_t words = kBytes / 8, begin = words * thread / pool.size();
          const std::int64_t end = words * (thread + 1) / pool.size();
          sums[static_cast<std::size_t>(thread) * 8] = sum(region.words() + begin, end - begin);
        });
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::max(best, static_cast<double>(kBytes) / seconds / 1e9);
        sink = sink + sums[0];
      }
    }
  }
  return best;
}

}  // namespace spear
