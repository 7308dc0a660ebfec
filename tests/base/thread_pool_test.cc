#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace spear {
namespace {

TEST(ThreadPool, EveryIndexOnceInWholeGrains) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const std::int64_t count : {0, 1, 5, 64, 1000}) {
      for (const std::int64_t grain : {1, 8, 300}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
        std::atomic<bool> aligned = true;
        pool.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
          if (begin % grain != 0 || (end % grain != 0 && end != count)) aligned = false;
          for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        EXPECT_TRUE(aligned) << threads << " threads, count " << count << ", grain " << grain;
        for (const auto& visit : visits) ASSERT_EQ(visit, 1);
      }
    }
  }
}

TEST(ThreadPool, SplitDependsOnIndexOnly) {
  ThreadPool pool(4);
  const auto ranges = [&] {
    std::vector<std::int64_t> end_of(1000);
    pool.parallel_for(1000, 10, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) end_of[static_cast<std::size_t>(i)] = end;
    });
    return end_of;
  };
  const auto first = ranges();
  for (int repeat = 0; repeat < 50; ++repeat) ASSERT_EQ(ranges(), first);
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  for (int repeat = 0; repeat < 20; ++repeat) {
    EXPECT_THROW(pool.parallel_for(300, 1,
                                   [](std::int64_t begin, std::int64_t) {
                                     if (begin > 0) throw std::runtime_error("from a worker");
                                   }),
                 std::runtime_error);
    std::atomic<std::int64_t> sum = 0;
    pool.parallel_for(300, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
    EXPECT_EQ(sum, 300);
  }
}

TEST(ThreadPool, RunCallsEveryThreadOnceAlsoAfterTheyWentToSleep) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::vector<int> calls(static_cast<std::size_t>(threads) * 16);  // a cache line each; no atomics: run() orders them
    for (int repeat = 0; repeat < 2000; ++repeat) {
      if (repeat % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pool.run([&](int thread) { ++calls[static_cast<std::size_t>(thread) * 16]; });
    }
    for (int thread = 0; thread < threads; ++thread) EXPECT_EQ(calls[static_cast<std::size_t>(thread) * 16], 2000);
  }
}

TEST(Rendezvous, WhatWasWrittenBeforeArrivingIsSeenAfterWaiting) {
  ThreadPool pool(3);
  Rendezvous rendezvous;
  int written[3] = {};
  for (int repeat = 1; repeat <= 300; ++repeat) {
    rendezvous.reset(3);
    std::atomic<int> sum = 0;
    pool.run([&](int thread) {
      written[thread] = repeat;
      rendezvous.arrive();
      rendezvous.wait();
      sum += written[(thread + 1) % 3];
    });
    ASSERT_EQ(sum, 3 * repeat);
  }
}

TEST(ThreadPool, DefaultUsesAtLeastTheCaller) {
  ThreadPool pool;
  EXPECT_GE(pool.size(), 1);
}

}  // namespace
}  // namespace spear
