// What the machine has left: memory, disk, cores. Used for the preflight and for reports.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace spear {

/// Resident set of this process in bytes, now and at its peak (0 if unknown).
std::int64_t resident_bytes();
std::int64_t peak_resident_bytes();

/// Memory in bytes that can still be used, the tighter of the machine's and the cgroup's limit.
std::int64_t available_memory_bytes();

/// Free bytes of the file system that holds `path` or its nearest existing parent.
std::int64_t free_disk_bytes(const std::filesystem::path& path);

/// Cores this process may run on (affinity and cgroup quota taken into account), at least 1.
int usable_cores();

/// From now on malloc keeps what is freed (blocks of up to 256 MiB, and up to 2 GiB at the heap's end) and gives it out
/// again: tensors that come and go would else be new pages each time, which the kernel zeroes, a fifth of the quantizer's
/// time. No effect with another malloc than glibc's.
void keep_freed_memory();

/// "AMD EPYC, 2 cores, 23.5 GiB" for reports.
std::string machine_description();

}  // namespace spear
