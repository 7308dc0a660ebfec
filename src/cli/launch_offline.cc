#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
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

}  // namespace

void add_offline_commands(CommandLine& line) {
  for (const auto& command : kOfflineCommands) {
    line.root().add_subcommand(command.name, command.purpose)->group("Commands that need libtorch");
  }
}

void run_offline_command(int argc, char** argv) {
  const auto is_chosen = [&](const OfflineCommand& command) { return std::strcmp(command.name, argv[1]) == 0; };
  if (argc < 2 || std::none_of(kOfflineCommands.begin(), kOfflineCommands.end(), is_chosen)) return;
  const fs::path program = offline_program();
  execv(program.c_str(), argv);
  if (errno == ENOENT) {
    throw failed(fmt::format("'{}' needs the offline plane, which is not installed", argv[1]), program.string(),
                 "install libtorch and build with cmake -DSPEAR_OFFLINE=ON (scripts/build does)");
  }
  throw failed(fmt::format("cannot start: {}", std::strerror(errno)), program.string());
}

}  // namespace spear::cli
