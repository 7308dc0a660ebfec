#include <fmt/format.h>

#include "base/resources.h"
#include "cli/commands.h"
#include "ops/cpu/kernels.h"

namespace spear::cli {
namespace {

int run(const CommonOptions& common) {
  apply(common);
  const char* isa = default_kernels().isa;
  if (common.json) {
    print_json(
        {{"schema", "spear.version/1"}, {"version", SPEAR_VERSION}, {"isa", isa}, {"machine", machine_description()}});
  } else {
    fmt::print("spear {} ({} on {})\n", SPEAR_VERSION, isa, machine_description());
  }
  return 0;
}

}  // namespace

void add_version(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  line.root().set_version_flag("--version", "spear " SPEAR_VERSION);
  CLI::App& command =
      line.add("version", "Print the version, and the kernels this machine gets",
               {"spear version", "SPEAR_FORCE_ISA=avx2 spear version --json"}, [=] { return run(*common); });
  add_common_options(command, common);
}

}  // namespace spear::cli
