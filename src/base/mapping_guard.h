// A mapped file that shrinks, or whose disk fails, ends the process with an error instead of SIGBUS.
//
// Reading behind the new end of a mapped file raises SIGBUS in whatever thread happens to read, deep inside a kernel.
// Nothing computed from then on could be right, and no other thread may go on with half a model, so the handler says
// which file it was and leaves at once with the exit code of bad input. Files under construction have temporary names:
// what an unfinished process leaves behind is never taken for a checkpoint.
#pragma once

#include <cstddef>
#include <string>

namespace spear {

/// Registers a mapping while it lives. The first one installs the handler; a SIGBUS outside every registered mapping
/// ends the process as it would without one.
class MappingGuard {
 public:
  MappingGuard(const void* data, std::size_t size, const std::string& path);
  ~MappingGuard();
  MappingGuard(const MappingGuard&) = delete;
  MappingGuard& operator=(const MappingGuard&) = delete;

 private:
  struct Entry;
  friend struct MappingTable;
  Entry* entry_;
};

/// Gives the pages of all registered mappings back to the machine, for when what matters was copied out of them: whatever is
/// read all the same comes again from the system's file cache.
void release_mapped_pages();

}  // namespace spear
