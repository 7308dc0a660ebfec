// A fixed set of threads that run one loop at a time. Work is split by index, so results never depend on timing.
// Threads spin for a short while between loops, because a model step is hundreds of loops of microseconds, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace spear {

/// Tells the processor that this is a spin loop.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// A callable that is borrowed for one call: no allocation, unlike std::function.
template <class... Args>
class Callback {
 public:
  template <class Body, class = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<Body>, Callback>>>
  Callback(Body&& body)  // NOLINT: implicit on purpose, as a parameter type
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(body)))),
        call_([](void* object, Args... args) { (*static_cast<std::remove_reference_t<Body>*>(object))(args...); }) {}
  void operator()(Args... args) const { call_(object_, args...); }

 private:
  void* object_;
  void (*call_)(void*, Args...);
};

class ThreadPool {
 public:
  /// `threads` in all, the caller included; 0 means every usable core.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(thread) once on each of the size() threads, the caller being thread 0, and waits. The first exception
  /// is rethrown. Not re-entrant; one caller at a time.
  void run(Callback<int> body);

  /// Calls body(begin, end) on contiguous ranges that cover [0, count), one range per thread, and waits.
  /// Ranges are multiples of `grain` long (except the last). The first exception is rethrown. Not re-entrant.
  void parallel_for(std::int64_t count, std::int64_t grain, Callback<std::int64_t, std::int64_t> body);

 private:
  void worker(int index);
  void run_share(int index);
  void wait_for_workers();

  std::vector<std::thread> workers_;
  int spins_;  ///< rounds of spinning before a sleep; 0 where threads outnumber cores
  const Callback<int>* body_ = nullptr;
  // The caller writes generation_, workers write pending_: on cache lines of their own.
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<std::uint32_t> pending_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

/// A point inside a run() that threads reach (arrive) and pass (wait) at different places: what lies between is done
/// while the others catch up. Good for one use; reset() it between runs.
class Rendezvous {
 public:
  void reset(int threads) { missing_.store(threads, std::memory_order_relaxed); }
  void arrive() { missing_.fetch_sub(1, std::memory_order_acq_rel); }
  void wait() const {
    for (int i = 0; missing_.load(std::memory_order_acquire) > 0; ++i) {
      if (i < 4096) {
        spin_pause();
      } else {
        std::this_thread::yield();  // the other thread may need this core
      }
    }
  }

 private:
  alignas(64) std::atomic<int> missing_{0};
};

}  // namespace spear
