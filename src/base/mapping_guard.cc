#include "base/mapping_guard.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <mutex>

#include "base/error.h"

namespace spear {

/// Entries are never freed, only used again: the handler may walk the list at any time, without a lock.
struct MappingGuard::Entry {
  std::atomic<std::uintptr_t> begin{0};  ///< 0: free. Written last, so that the rest is valid where it isn't 0
  std::size_t size = 0;
  std::string path;
  Entry* next = nullptr;
};

struct MappingTable {
  static inline std::mutex mutex;  // of writers
  static inline std::atomic<MappingGuard::Entry*> first{nullptr};

  static const MappingGuard::Entry* find(std::uintptr_t address) {
    for (const auto* entry = first.load(); entry != nullptr; entry = entry->next) {
      const std::uintptr_t begin = entry->begin.load();
      if (begin != 0 && address >= begin && address - begin < entry->size) return entry;
    }
    return nullptr;
  }
};

namespace {

void say(const char* text, std::size_t size) {
  [[maybe_unused]] const auto written = write(STDERR_FILENO, text, size);  // nobody is left to hear of a failure
}

void on_bus_error(int, siginfo_t* info, void*) {
  const auto* entry = MappingTable::find(reinterpret_cast<std::uintptr_t>(info->si_addr));
  if (entry == nullptr) {
    std::signal(SIGBUS, SIG_DFL);  // the access is repeated and ends the process
    return;
  }
  // Threads that read the same file fail together: one speaks, the others wait for its _exit.
  static std::atomic_flag spoken;
  while (spoken.test_and_set()) pause();
  constexpr char kBefore[] = "error: ", kAfter[] =
                                            ": the file shrank, or its disk failed, while it was being read\n"
                                            "  fix: leave models alone while they are in use; get the file again\n";
  say(kBefore, sizeof kBefore - 1);
  say(entry->path.data(), entry->path.size());
  say(kAfter, sizeof kAfter - 1);
  _exit(static_cast<int>(ExitCode::bad_input));
}

void install_handler() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

MappingGuard::MappingGuard(const void* data, std::size_t size, const std::string& path) : entry_(nullptr) {
  const std::scoped_lock lock(MappingTable::mutex);
  if (MappingTable::first.load() == nullptr) install_handler();
  for (entry_ = MappingTable::first.load(); entry_ != nullptr && entry_->begin.load() != 0;) entry_ = entry_->next;
  const bool fresh = entry_ == nullptr;
  if (fresh) entry_ = new Entry;
  entry_->size = size;
  entry_->path = path;
  entry_->begin.store(reinterpret_cast<std::uintptr_t>(data));
  if (!fresh) return;
  entry_->next = MappingTable::first.load();
  MappingTable::first.store(entry_);
}

MappingGuard::~MappingGuard() {
  const std::scoped_lock lock(MappingTable::mutex);
  entry_->begin.store(0);
}

void release_mapped_pages() {
  const std::scoped_lock lock(MappingTable::mutex);
  for (const auto* entry = MappingTable::first.load(); entry != nullptr; entry = entry->next) {
    const std::uintptr_t begin = entry->begin.load();
    if (begin != 0) madvise(reinterpret_cast<void*>(begin), entry->size, MADV_DONTNEED);
  }
}

}  // namespace spear
