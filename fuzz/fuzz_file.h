// Files for fuzzers: the readers take paths, so the input is put where a path leads.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "base/error.h"

namespace spear::fuzz {

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A directory in memory (or where TMPDIR says), for this process; removed at exit.
class Directory {
 public:
  Directory() {
    const char* base = std::getenv("TMPDIR");
    std::string pattern = std::string(base != nullptr ? base : "/dev/shm") + "/spear-fuzz-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::string& name, std::string_view bytes) const {
    const auto path = path_ / name;
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) std::abort();
    return path;
  }

 private:
  std::filesystem::path path_;
};

/// Runs a reader: it may succeed, or refuse with the exit code of bad input (or of a size that is too large). Anything
/// else, another exception above all, is a finding.
template <class Body>
bool survives(const Body& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    if (error.code() != ExitCode::bad_input && error.code() != ExitCode::out_of_resources) std::abort();
    return false;
  }
}

/// Reads every byte, so that a span that leaves its buffer is seen.
inline void touch(const void* data, std::size_t size) {
  const auto* bytes = static_cast<const volatile std::uint8_t*>(data);
  for (std::size_t i = 0; i < size; ++i) (void)bytes[i];
}

}  // namespace spear::fuzz
