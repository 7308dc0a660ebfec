// Completion scripts, made from the commands as they are declared. Options of offline commands are asked of the
// program itself when they are needed.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "cli/commands.h"

namespace spear::cli {
namespace {

bool is_offline(const std::string& name) {
  return std::any_of(kOfflineCommands.begin(), kOfflineCommands.end(),
                     [&](const OfflineCommand& command) { return name == command.name; });
}

std::vector<const CLI::App*> commands_of(const CLI::App& root) {
  return root.get_subcommands([](const CLI::App*) { return true; });
}

std::string long_options(const CLI::App& command) {
  std::string words;
  for (const CLI::Option* option : command.get_options()) {
    for (const auto& name : option->get_lnames()) words += (words.empty() ? "--" : " --") + name;
  }
  return words;
}

/// Inside single quotes of any of the three shells' scripts.
std::string quoted(std::string text) {
  std::replace(text.begin(), text.end(), '\'', '`');
  return text;
}

constexpr const char* kAskProgram = R"($(spear "$command" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*'))";

std::string bash_script(const CLI::App& root) {
  std::string names, cases;
  for (const CLI::App* command : commands_of(root)) {
    names += (names.empty() ? "" : " ") + command->get_name();
    if (is_offline(command->get_name())) continue;
    const bool shells = command->get_name() == "completions";
    cases += fmt::format("    {}) words='{}' ;;\n", command->get_name(),
                         (shells ? "bash zsh fish " : "") + long_options(*command));
  }
  return fmt::format(R"(# bash completion for spear:  source <(spear completions bash)
_spear() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{}' -- "$current"))
    return
  fi
  case "$command" in
{}    *) words="{}" ;;
  esac
  if [ "$previous" = --compensators ]; then
    COMPREPLY=($(compgen -W 'on off' -- "$current"))
  elif [ "$command" = completions ] || [ "${{current#-}}" != "$current" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _spear spear
)",
                     names, cases, kAskProgram);
}

std::string zsh_script(const CLI::App& root) {
  std::string names, cases;
  for (const CLI::App* command : commands_of(root)) {
    names += fmt::format("    '{}:{}'\n", command->get_name(), quoted(command->get_description()));
    if (is_offline(command->get_name())) continue;
    const bool shells = command->get_name() == "completions";
    cases += fmt::format("    {}) words=({}) ;;\n", command->get_name(),
                         (shells ? "bash zsh fish " : "") + long_options(*command));
  }
  return fmt::format(R"(#compdef spear
# zsh completion for spear:  source <(spear completions zsh)
_spear() {{
  local -a commands words
  commands=(
{}  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=${{words[2]}}
  command=${{(Q)${{(z)BUFFER}}[2]}}
  case $command in
{}    *) words=({}) ;;
  esac
  if [[ $PREFIX == -* || $command == completions ]]; then
    compadd -- $words
  else
    _files
  fi
}}
compdef _spear spear
)",
                     names, cases, kAskProgram);
}

std::string fish_script(const CLI::App& root) {
  std::string lines = "# fish completion for spear:  spear completions fish | source\n";
  for (const CLI::App* command : commands_of(root)) {
    const std::string& name = command->get_name();
    lines += fmt::format("complete -c spear -n __fish_use_subcommand -f -a {} -d '{}'\n", name,
                         quoted(command->get_description()));
    const std::string condition = fmt::format("-n '__fish_seen_subcommand_from {}'", name);
    if (is_offline(name)) {
      lines += fmt::format(
          "complete -c spear {} -a '(spear {} --help 2>/dev/null | string match -ra -- \"--[a-z][a-z-]*\")'\n",
          condition, name);
      continue;
    }
    if (name == "completions") lines += fmt::format("complete -c spear {} -f -a 'bash zsh fish'\n", condition);
    for (const CLI::Option* option : command->get_options()) {
      for (const auto& long_name : option->get_lnames()) {
        lines += fmt::format("complete -c spear {} -l {}{} -d '{}'\n", condition, long_name,
                             option->get_items_expected_max() > 0 ? " -r" : "", quoted(option->get_description()));
      }
    }
  }
  return lines;
}

}  // namespace

void add_completions(CommandLine& line) {
  auto shell = std::make_shared<std::string>();
  const auto run = [shell, &line] {
    const std::string script = *shell == "bash"  ? bash_script(line.root())
                               : *shell == "zsh" ? zsh_script(line.root())
                                                 : fish_script(line.root());
    fmt::print("{}", script);
    return 0;
  };
  CLI::App& command = line.add("completions", "Print a script that completes commands and options in a shell",
                               {"source <(spear completions bash)", "spear completions fish | source"}, run);
  command.add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}).description(""))
      ->type_name("SHELL");
}

}  // namespace spear::cli
