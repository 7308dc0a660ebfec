// spear: the command line of the online plane. Links no torch; offline commands are another program.
#include "cli/commands.h"

int main(int argc, char** argv) {
  spear::cli::CommandLine line("spear", "Gives a 4-bit language model back the quality that quantization took.");
  spear::cli::add_offline_commands(line, argv);
  spear::cli::add_generate(line);
  spear::cli::add_eval(line);
  spear::cli::add_bench(line);
  spear::cli::add_profile(line);
  spear::cli::add_simulate(line);
  spear::cli::add_inspect(line);
  spear::cli::add_tokenize(line);
  spear::cli::add_export(line);
  spear::cli::add_report(line);
#ifdef SPEAR_SERVER
  spear::cli::add_serve(line);
#endif
  spear::cli::add_version(line);
  spear::cli::add_completions(line);
  return line.run(argc, argv);
}
