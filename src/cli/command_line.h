// What both binaries share: commands with short help and two examples, exit codes, errors that name the fix.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace spear::cli {

/// Options that every command has.
struct CommonOptions {
  bool json = false, quiet = false;
  int threads = 0;  ///< 0: every usable core
};

/// A program and its commands. `run` parses, calls one command and turns everything that happens into an exit code:
/// data goes to stdout, all else to stderr.
class CommandLine {
 public:
  CommandLine(const std::string& program, const std::string& purpose);

  CLI::App& root() { return root_; }
  const CLI::App& root() const { return root_; }

  /// `examples`: two full command lines. The action's return value is the exit code.
  CLI::App& add(const std::string& name, const std::string& purpose, const std::vector<std::string>& examples,
                std::function<int()> action);

  int run(int argc, char** argv);

 private:
  int parse(int argc, char** argv);

  CLI::App root_;
  int exit_code_ = 0;
};

/// --json, --quiet, --threads.
void add_common_options(CLI::App& command, const std::shared_ptr<CommonOptions>& options);

/// Sets up logging and progress; call it first in every action.
void apply(const CommonOptions& options);

/// One JSON document on stdout.
void print_json(const nlohmann::json& document);

/// "next: ..." on stderr, unless --quiet.
void print_next(const CommonOptions& options, const std::string& command);

/// A path as one would type it in a shell.
std::string shell_quoted(const std::filesystem::path& path);

/// Of `candidates` the one nearest to `word` by edit distance, or empty if none is close.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace spear::cli
