#include "report/report.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "cli/commands.h"
#include "io/checkpoint.h"

namespace spear::cli {
namespace {

struct Options {
  std::string model, out;
  bool force = false;
};

int run(const CommonOptions& common, const Options& options) {
  apply(common);
  const std::filesystem::path out =
      options.out.empty() ? std::filesystem::path(options.model) / "report.html" : std::filesystem::path(options.out);
  std::error_code ignored;
  if (!options.force && std::filesystem::exists(out, ignored)) {
    throw usage_error("output exists already", out.string(), "choose another --out, or pass --force to replace it");
  }
  write_file_atomic(out, render_report(read_manifest(options.model)));
  if (common.json) {
    print_json({{"schema", "spear.report/1"}, {"out", out.string()}});
  } else {
    fmt::print("{}\n", out.string());
  }
  print_next(common, fmt::format("xdg-open {}", shell_quoted(out)));
  return 0;
}

}  // namespace

void add_report(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("report", "Write a checkpoint's results as one HTML page",
                               {"spear report --model recovered --out report.html", "spear report recovered --force"},
                               [=] { return run(*common, *options); });
  command.add_option("--model,model", options->model, "SPEAR checkpoint")->type_name("DIR")->required()->group("Model");
  command.add_option("--out", options->out, "The page; report.html in the checkpoint by default")
      ->type_name("FILE")
      ->group("Output");
  command.add_flag("--force", options->force, "Replace an existing page")->group("Output");
  add_common_options(command, common);
}

}  // namespace spear::cli
