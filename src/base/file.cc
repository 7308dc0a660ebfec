#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/error.h"

namespace spear {
namespace {

namespace fs = std::filesystem;

/// Turns errno of a failed write into the right kind of error.
Error write_error(const fs::path& path, int code) {
  if (code == ENOSPC || code == EDQUOT) {
    return out_of_resources("no space left on the device", path.string(), "free disk space and run again with --resume");
  }
  return failed(fmt::format("cannot write: {}", std::strerror(code)), path.string(),
                "check that the directory exists and is writable");
}

void sync_directory(const fs::path& directory) {
  const int fd = open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw bad_input(fmt::format("cannot open: {}", std::strerror(errno)), path.string(), "check the path");
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    throw bad_input("not a regular file", path.string(), "pass a file");
  }
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ > 0) {
    void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      const int code = errno;
      close(fd);
      throw bad_input(fmt::format("cannot map: {}", std::strerror(code)), path.string());
    }
    data_ = static_cast<const std::byte*>(data);
    guard_.emplace(data, size_, path_.string());
  }
  close(fd);
}

MappedFile::~MappedFile() {
  guard_.reset();
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

std::string read_text_file(const fs::path& path, std::size_t max_bytes) {
  std::error_code failure;
  if (!fs::is_regular_file(path, failure)) throw bad_input("no such file", path.string(), "check the path");
  const auto size = fs::file_size(path, failure);
  if (failure || size > max_bytes) {
    throw bad_input(fmt::format("file is larger than the {} bytes allowed here", max_bytes), path.string());
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (!in || static_cast<std::size_t>(in.gcount()) != size) throw bad_input("cannot read the whole file", path.string());
  return text;
}

OutputFile::OutputFile(fs::path path)
    : path_(std::move(path)), temporary_(path_.string() + fmt::format(".tmp{}", getpid())) {
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) throw write_error(path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw write_error(path_, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void OutputFile::finish() {
  if (fsync(fd_) != 0) throw write_error(path_, errno);
  const int fd = std::exchange(fd_, -1);
  if (close(fd) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    unlink(temporary_.c_str());
    throw write_error(path_, code);
  }
  sync_directory(path_.parent_path());
}

void write_file_atomic(const fs::path& path, std::string_view content) {
  OutputFile file(path);
  file.write(content);
  file.finish();
}

StagedDirectory::StagedDirectory(fs::path target, bool force) : target_(std::move(target)), force_(force) {
  if (target_.filename().empty()) target_ = target_.parent_path();
  std::error_code failure;
  if (fs::exists(target_, failure) && !force_) {
    throw usage_error("output exists already", target_.string(), "choose another --out, or pass --force to replace it");
  }
  if (!target_.parent_path().empty()) fs::create_directories(target_.parent_path(), failure);
  staging_ = target_.string() + fmt::format(".tmp{}", getpid());
  fs::remove_all(staging_, failure);
  if (!fs::create_directories(staging_, failure)) throw write_error(staging_, failure.value());
}

StagedDirectory::~StagedDirectory() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(staging_, ignored);
}

void StagedDirectory::commit() {
  std::error_code failure;
  const fs::path old = target_.string() + fmt::format(".old{}", getpid());
  const bool replace = fs::exists(target_, failure);
  if (replace && !force_) throw usage_error("output exists already", target_.string(), "pass --force to replace it");
  if (replace) fs::rename(target_, old, failure);
  if (!failure) fs::rename(staging_, target_, failure);
  if (failure) throw write_error(target_, failure.value());
  committed_ = true;
  sync_directory(target_.parent_path());
  if (replace) fs::remove_all(old, failure);
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr) != 1) {
    throw failed("SHA-256 is not available in this OpenSSL");
  }
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string sha256_hex(std::string_view text) { return sha256_hex(std::as_bytes(std::span(text.data(), text.size()))); }

std::string sha256_file(const fs::path& path) { return sha256_hex(MappedFile(path).bytes()); }

}  // namespace spear
