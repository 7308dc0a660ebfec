#include "base/resources.h"

#include <fmt/format.h>
#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

namespace spear {
namespace {

std::int64_t proc_field_kib(const char* file, const std::string& name) {
  std::ifstream in(file);
  for (std::string key; in >> key;) {
    std::int64_t value = 0;
    if (key == name && in >> value) return value * 1024;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

/// Of the first processor; empty if it has none of that name.
std::string cpuinfo_field(const std::string& name) {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(name) && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  }
  return "";
}

/// First number of a cgroup v2 file; -1 if the file is absent or says "max".
std::int64_t cgroup_number(const char* file) {
  std::ifstream in(file);
  std::int64_t value = -1;
  return in >> value ? value : -1;
}

}  // namespace

std::int64_t resident_bytes() { return proc_field_kib("/proc/self/status", "VmRSS:"); }
std::int64_t peak_resident_bytes() { return proc_field_kib("/proc/self/status", "VmHWM:"); }

std::int64_t available_memory_bytes() {
  std::int64_t bytes = proc_field_kib("/proc/meminfo", "MemAvailable:");
  const std::int64_t limit = cgroup_number("/sys/fs/cgroup/memory.max");
  const std::int64_t used = cgroup_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) bytes = std::min(bytes, std::max<std::int64_t>(limit - used, 0));
  return bytes;
}

std::int64_t free_disk_bytes(const std::filesystem::path& path) {
  std::error_code ignored;
  auto existing = std::filesystem::absolute(path, ignored);
  while (!existing.empty() && !std::filesystem::exists(existing, ignored) && existing != existing.root_path()) {
    existing = existing.parent_path();
  }
  const auto space = std::filesystem::space(existing, ignored);
  return ignored ? 0 : static_cast<std::int64_t>(std::min<std::uintmax_t>(space.available, INT64_MAX));
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (quota_file >> quota >> period && quota > 0 && period > 0) {
    cores = std::min(cores, static_cast<int>(std::ceil(quota / period)));
  }
  return std::max(cores, 1);
}

void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 256 << 20);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

std::string machine_description() {
  std::string model = cpuinfo_field("model name");
  if (model.empty() && !cpuinfo_field("CPU part").empty()) {  // Arm has numbers for names
    model = fmt::format("Arm processor {}/{}", cpuinfo_field("CPU implementer"), cpuinfo_field("CPU part"));
  }
  if (model.empty()) model = "unknown processor";
  const double gib = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE)) / (1 << 30);
  return fmt::format("{}, {} cores, {:.1f} GiB", model, usable_cores(), gib);
}

}  // namespace spear
