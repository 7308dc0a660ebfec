#include "cli/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/progress.h"

namespace spear::cli {
namespace {

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

/// The command that was named, or the program itself.
const CLI::App& active_command(const CLI::App& root) {
  const auto chosen = root.get_subcommands();
  return chosen.empty() ? root : *chosen.front();
}

std::string help_command(const CLI::App& root) {
  const CLI::App& command = active_command(root);
  return root.get_name() + (&command == &root ? "" : " " + command.get_name()) + " --help";
}

/// The usage error for arguments that nothing takes.
Error unexpected_argument(const CLI::App& root) {
  const CLI::App& command = active_command(root);
  const auto left = root.remaining(true);
  const std::string argument = left.empty() ? "" : left.front();
  std::vector<std::string> known;
  const bool option = argument.starts_with("-");
  if (option) {
    for (const CLI::Option* candidate : command.get_options()) {
      for (const auto& name : candidate->get_lnames()) known.push_back("--" + name);
    }
  } else if (&command == &root) {
    for (const CLI::App* candidate : root.get_subcommands({})) known.push_back(candidate->get_name());
  }
  const std::string suggestion = nearest(argument.substr(0, argument.find('=')), known);
  const char* kind = option ? "option" : &command == &root ? "command" : "argument";
  return usage_error(fmt::format("unknown {} '{}'", kind, argument), command.get_name(),
                     suggestion.empty() ? "see " + help_command(root) : fmt::format("use '{}'", suggestion));
}

void report(const Error& error) { std::fprintf(stderr, "error: %s\n", error.what()); }

}  // namespace

CommandLine::CommandLine(const std::string& program, const std::string& purpose) : root_(purpose, program) {
  root_.require_subcommand(0, 1);
  root_.set_help_flag("-h,--help", "Print this help");
  root_.set_help_all_flag("--help-all", "Print the help of every command");
  root_.footer("Run '" + program + " COMMAND --help' for the options of a command.");
  root_.get_formatter()->column_width(34);
}

CLI::App& CommandLine::add(const std::string& name, const std::string& purpose,
                           const std::vector<std::string>& examples, std::function<int()> action) {
  CLI::App& command = *root_.add_subcommand(name, purpose);
  command.set_help_all_flag();
  command.group("Commands");
  std::string footer = examples.empty() ? "" : "Examples:";
  for (const auto& example : examples) footer += "\n  " + example;
  command.footer(footer);
  command.callback([this, action = std::move(action)] { exit_code_ = action(); });
  return command;
}

int CommandLine::parse(int argc, char** argv) {
  try {
    root_.parse(argc, argv);
    if (root_.get_subcommands().empty()) {
      throw usage_error("no command given", "", "see " + root_.get_name() + " --help");
    }
    return exit_code_;
  } catch (const CLI::Success& help) {
    return root_.exit(help);
  } catch (const CLI::ParseError& error) {
    // A misspelt option may also make a required one seem missing: name the cause first.
    if (!root_.remaining(true).empty()) throw unexpected_argument(root_);
    throw usage_error(error.what(), active_command(root_).get_name(), "see " + help_command(root_));
  }
}

int CommandLine::run(int argc, char** argv) {
  install_interrupt_handlers();
  int code = 0;
  try {
    code = parse(argc, argv);
    if (std::fflush(stdout) != 0) throw failed("cannot write to stdout", "", "check the disk or the pipe behind it");
  } catch (const Error& error) {
    report(error);
    code = static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    report(out_of_resources("out of memory", "", "close other programs, or use a smaller model or context"));
    code = static_cast<int>(ExitCode::out_of_resources);
  } catch (const std::exception& error) {
    report(failed(error.what(), "", "this is a defect of SPEAR; please report it with the command line"));
    code = static_cast<int>(ExitCode::failed);
  }
  return code;
}

void add_common_options(CLI::App& command, const std::shared_ptr<CommonOptions>& options) {
  command.add_flag("--json", options->json, "One JSON document on stdout")->group("Output");
  command.add_flag("--quiet", options->quiet, "Print results, warnings and errors only")->group("Output");
  command.add_option("--threads", options->threads, "Threads; all usable cores by default")
      ->check(CLI::Range(1, 1024).description(""))
      ->group("Machine");
}

void apply(const CommonOptions& options) {
  log::init(options.quiet);
  Progress::set_quiet(options.quiet);
}

void print_json(const nlohmann::json& document) {
  const std::string text = document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
}

void print_next(const CommonOptions& options, const std::string& command) {
  if (!options.quiet) std::fprintf(stderr, "next: %s\n", command.c_str());
}

std::string shell_quoted(const std::filesystem::path& path) {
  const std::string text = path.string();
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/+=:,@%";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  int distance = std::max<int>(2, static_cast<int>(word.size()) / 3) + 1;
  for (const auto& candidate : candidates) {
    const int found = edit_distance(word, candidate);
    if (found < distance) {
      distance = found;
      best = candidate;
    }
  }
  return best;
}

}  // namespace spear::cli
