#include "base/file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/mapping_guard.h"
#include "temporary_directory.h"

namespace spear {
namespace {

namespace fs = std::filesystem;

/// The exit code of the Error that `body` throws; ok if it throws none.
template <class Body>
ExitCode code_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

std::size_t entries(const fs::path& directory) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

TEST(Sha256, KnownVectors) {  // FIPS 180-2, appendix B
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256, FileEqualsItsBytes) {
  const TemporaryDirectory directory;
  const std::string content(100'000, 'x');
  write_file_atomic(directory / "f", content);
  EXPECT_EQ(sha256_file(directory / "f"), sha256_hex(content));
}

TEST(MappedFile, ReadsBytesAndRefusesWhatIsNoFile) {
  const TemporaryDirectory directory;
  write_file_atomic(directory / "f", "abc");
  const MappedFile file(directory / "f");
  ASSERT_EQ(file.bytes().size(), 3U);
  EXPECT_EQ(file.bytes()[2], std::byte{'c'});
  write_file_atomic(directory / "empty", "");
  EXPECT_TRUE(MappedFile(directory / "empty").bytes().empty());
  EXPECT_EQ(code_of([&] { MappedFile{directory / "missing"}; }), ExitCode::bad_input);
  EXPECT_EQ(code_of([&] { MappedFile{directory.path()}; }), ExitCode::bad_input);
}

TEST(MappedFile, GivesItsPagesBackAndReadsThemAgain) {
  const TemporaryDirectory directory;
  constexpr std::size_t kBytes = std::size_t{16} << 20;
  write_file_atomic(directory / "f", std::string(kBytes, 'x'));
  const MappedFile file(directory / "f");
  const auto all_are_there = [&] {
    return std::all_of(file.bytes().begin(), file.bytes().end(), [](std::byte b) { return b == std::byte{'x'}; });
  };
  const auto pages_of_files = [] {
    std::ifstream in("/proc/self/statm");
    std::size_t total = 0, resident = 0, of_files = 0;
    in >> total >> resident >> of_files;
    return of_files;
  };
  ASSERT_TRUE(all_are_there());
  const std::size_t before = pages_of_files();
  release_mapped_pages();
  EXPECT_LE(pages_of_files() + kBytes / 4096 * 9 / 10, before);
  EXPECT_TRUE(all_are_there());
}

TEST(ReadTextFile, KeepsToItsLimit) {
  const TemporaryDirectory directory;
  write_file_atomic(directory / "f", "12345");
  EXPECT_EQ(read_text_file(directory / "f", 5), "12345");
  EXPECT_EQ(code_of([&] { read_text_file(directory / "f", 4); }), ExitCode::bad_input);
  EXPECT_EQ(code_of([&] { read_text_file(directory / "missing"); }), ExitCode::bad_input);
  EXPECT_EQ(code_of([&] { read_text_file(directory.path()); }), ExitCode::bad_input);
}

TEST(OutputFile, ReplacesWholeOrNotAtAll) {
  const TemporaryDirectory directory;
  write_file_atomic(directory / "f", "old");
  {
    OutputFile file(directory / "f");
    file.write("half of the new");
  }
  EXPECT_EQ(read_text_file(directory / "f"), "old");
  EXPECT_EQ(entries(directory.path()), 1U) << "the temporary file was left behind";
  OutputFile file(directory / "f");
  file.write("ne");
  file.write("w");
  file.finish();
  EXPECT_EQ(read_text_file(directory / "f"), "new");
  EXPECT_EQ(entries(directory.path()), 1U);
}

TEST(OutputFile, FullDiskIsOutOfResources) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const TemporaryDirectory directory;
  fs::create_symlink("/dev/full", directory / fmt::format("f.tmp{}", getpid()));
  EXPECT_EQ(code_of([&] { write_file_atomic(directory / "f", "x"); }), ExitCode::out_of_resources);
  EXPECT_FALSE(fs::exists(directory / "f"));
}

TEST(OutputFile, MissingDirectoryFails) {
  const TemporaryDirectory directory;
  EXPECT_EQ(code_of([&] { write_file_atomic(directory / "no" / "f", "x"); }), ExitCode::failed);
}

TEST(StagedDirectory, AppearsAtCommit) {
  const TemporaryDirectory directory;
  StagedDirectory staged(directory / "out", false);
  write_file_atomic(staged.path() / "f", "x");
  EXPECT_FALSE(fs::exists(directory / "out"));
  staged.commit();
  EXPECT_EQ(read_text_file(directory / "out" / "f"), "x");
  EXPECT_EQ(entries(directory.path()), 1U);
}

TEST(StagedDirectory, UncommittedLeavesNothing) {
  const TemporaryDirectory directory;
  { write_file_atomic(StagedDirectory(directory / "out", false).path() / "f", "x"); }
  EXPECT_EQ(entries(directory.path()), 0U);
}

TEST(StagedDirectory, OverwritesOnlyWithForce) {
  const TemporaryDirectory directory;
  fs::create_directory(directory / "out");
  write_file_atomic(directory / "out" / "old", "x");
  EXPECT_EQ(code_of([&] { StagedDirectory(directory / "out", false); }), ExitCode::usage);
  { const StagedDirectory abandoned(directory / "out", true); }
  EXPECT_TRUE(fs::exists(directory / "out" / "old"));
  StagedDirectory staged(directory / "out", true);
  write_file_atomic(staged.path() / "new", "x");
  EXPECT_TRUE(fs::exists(directory / "out" / "old"));
  staged.commit();
  EXPECT_FALSE(fs::exists(directory / "out" / "old"));
  EXPECT_TRUE(fs::exists(directory / "out" / "new"));
  EXPECT_EQ(entries(directory.path()), 1U);
}

TEST(StagedDirectory, TargetThatAppearsMeanwhileIsKept) {
  const TemporaryDirectory directory;
  StagedDirectory staged(directory / "out", false);
  fs::create_directory(directory / "out");
  EXPECT_EQ(code_of([&] { staged.commit(); }), ExitCode::usage);
  EXPECT_TRUE(fs::exists(directory / "out"));
}

TEST(StagedDirectory, TrailingSlashAndMissingParents) {
  const TemporaryDirectory directory;
  StagedDirectory staged((directory / "a" / "b").string() + "/", false);
  staged.commit();
  EXPECT_TRUE(fs::is_directory(directory / "a" / "b"));
}

// The program does the same from within its kernels: tests/python/test_shrinking_file.py.
TEST(MappedFileDeathTest, AFileThatShrinksIsAnErrorThatNamesIt) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "weights";
  const auto shrink_and_read = [&](std::size_t other_mappings) {
    write_file_atomic(path, std::string(1 << 20, 'x'));
    std::vector<std::unique_ptr<MappedFile>> others;
    for (std::size_t i = 0; i < other_mappings; ++i) others.push_back(std::make_unique<MappedFile>(path));
    if (!others.empty()) others.erase(others.begin());  // its place in the table is used again
    const MappedFile file(path);
    fs::resize_file(path, 4096);
    std::size_t sum = 0;
    std::thread reader([&] {
      for (const std::byte b : file.bytes()) sum += static_cast<std::size_t>(b);
    });
    reader.join();
    std::exit(sum == 0 ? 0 : 1);
  };
  EXPECT_EXIT(shrink_and_read(0), testing::ExitedWithCode(3), "weights: the file shrank");
  EXPECT_EXIT(shrink_and_read(3), testing::ExitedWithCode(3), "weights: the file shrank");
}

TEST(MappedFileDeathTest, OtherBusErrorsStayWhatTheyAre) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "other";
  const auto read_elsewhere = [&] {
    write_file_atomic(path, std::string(1 << 20, 'x'));
    { const MappedFile file(path); }  // installs the handler, and is gone
    const int fd = open(path.c_str(), O_RDONLY);
    const auto* data = static_cast<const volatile char*>(mmap(nullptr, 1 << 20, PROT_READ, MAP_PRIVATE, fd, 0));
    fs::resize_file(path, 4096);
    std::exit(data[1 << 19]);
  };
  EXPECT_EXIT(read_elsewhere(), testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace spear
