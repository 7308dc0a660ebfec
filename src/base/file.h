// Files from outside are mapped read-only and checked; files of ours appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/mapping_guard.h"

namespace spear {

/// A read-only mapping of a whole regular file. Throws Error(bad_input) naming the file if it can't be mapped. If the
/// file shrinks while it is mapped, whoever reads what is gone ends the process with exit code 3 (mapping_guard.h).
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::optional<MappingGuard> guard_;  // none for an empty file
};

/// Whole text file; refuses files above `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{1} << 30);

/// A file written piece by piece under a temporary name beside `path`; finish() syncs and renames it, so an existing
/// file is replaced whole or not at all. Left unfinished it is removed. Throws Error(out_of_resources) on a full disk.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  void finish();

 private:
  std::filesystem::path path_, temporary_;
  int fd_ = -1;
};

/// An OutputFile written in one go.
void write_file_atomic(const std::filesystem::path& path, std::string_view content);

/// A directory under construction: files are written into `path()`; `commit()` renames it to `target`.
/// Left behind uncommitted it is removed. An existing target throws Error(usage) unless `force`, and is then
/// swapped out only at commit.
class StagedDirectory {
 public:
  StagedDirectory(std::filesystem::path target, bool force);
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  const std::filesystem::path& path() const { return staging_; }
  void commit();

 private:
  std::filesystem::path target_, staging_;
  bool force_, committed_ = false;
};

/// Lower-case hexadecimal SHA-256 of bytes / of a file.
std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex(std::string_view text);
std::string sha256_file(const std::filesystem::path& path);

}  // namespace spear
