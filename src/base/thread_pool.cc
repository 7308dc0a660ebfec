#include "base/thread_pool.h"

#include <algorithm>

#include "base/resources.h"

namespace spear {
namespace {

constexpr int kSpins = 2000;  // about 30 us: longer than the gaps within a step, shorter than anyone would notice

/// True when `done` became so within the spins.
template <class Done>
bool spin_until(int spins, Done done) {
  for (int i = 0; i < spins; ++i) {
    if (done()) return true;
    spin_pause();
  }
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const int total = threads > 0 ? threads : usable_cores();
  spins_ = total <= usable_cores() ? kSpins : 0;
  for (int i = 1; i < total; ++i) workers_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  ++generation_;
  generation_.notify_all();
  for (auto& thread : workers_) thread.join();
}

void ThreadPool::run(Callback<int> body) {
  body_ = &body;
  if (!workers_.empty()) {
    pending_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
    // Sequentially consistent with the sleeper's own pair of accesses: one of the two sees the other.
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) generation_.notify_all();
  }
  run_share(0);
  if (!workers_.empty()) wait_for_workers();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::parallel_for(std::int64_t count, std::int64_t grain, Callback<std::int64_t, std::int64_t> body) {
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    body(0, count);
    return;
  }
  grain = std::max<std::int64_t>(grain, 1);
  const std::int64_t units = (count + grain - 1) / grain, threads = size();
  run([&](int index) {
    const std::int64_t begin = units * index / threads * grain;
    const std::int64_t end = std::min(units * (index + 1) / threads * grain, count);
    if (begin < end) body(begin, end);
  });
}

void ThreadPool::run_share(int index) {
  try {
    (*body_)(index);
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::wait_for_workers() {
  const auto done = [this] { return pending_.load(std::memory_order_acquire) == 0; };
  if (spin_until(spins_, done)) return;
  caller_sleeps_.store(true, std::memory_order_seq_cst);
  for (std::uint32_t left; (left = pending_.load(std::memory_order_seq_cst)) != 0;) pending_.wait(left);
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

void ThreadPool::worker(int index) {
  for (std::uint32_t seen = 0;;) {
    const auto started = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(spins_, started)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      while (generation_.load(std::memory_order_seq_cst) == seen) generation_.wait(seen);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    ++seen;  // the caller waits for everyone: no generation is ever skipped
    if (stop_.load(std::memory_order_acquire)) return;
    run_share(index);
    if (pending_.fetch_sub(1, std::memory_order_seq_cst) == 1 && caller_sleeps_.load(std::memory_order_seq_cst)) {
      pending_.notify_one();
    }
  }
}

}  // namespace spear
