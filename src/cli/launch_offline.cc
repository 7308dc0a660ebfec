#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "cli/commands.h"

namespace spear::cli {
namespace {

namespace fs = std::filesystem;

/// <prefix>/libexec/spear/spear-offline of the <prefix>/bin that this binary runs from.
fs::path offline_program() {
  std::error_code failure;
  const fs::path self = fs::read_symlink("/proc/self/exe", failure);
  if (failure) throw failed("cannot find the path of this program: " + failure.message());
  return self.parent_path().parent_path() / "libexec" / "spear" / "spear-offline";
}

[[noreturn]] int launch(char** argv) {
  const fs::path program = offline_program();
  execv(program.c_str(), argv);
  if (errno == ENOENT) {
    throw failed(fmt::format("'{}' needs the offline plane, which is not installed", argv[1]), program.string(),
                 "install libtorch and build with cmake -DSPEAR_OFFLINE=ON (scripts/build does)");
  }
  throw failed(fmt::format("cannot start: {}", std::strerror(errno)), program.string());
}

}  // namespace

void add_offline_commands(CommandLine& line, char** argv) {
  for (const auto& command : kOfflineCommands) {
    CLI::App& app = line.add(command.name, command.purpose, {}, [argv] { return launch(argv); });
    app.prefix_command()->set_help_flag();  // spear-offline parses the rest, --help included
    app.group("Commands that need libtorch");
  }
}

}  // namespace spear::cli
