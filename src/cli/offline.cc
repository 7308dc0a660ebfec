// The commands that need libtorch: recover, quantize, calibrate, diagnose.
#include <fmt/format.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/resources.h"
#include "cli/command_line.h"
#include "cli/offline_blas.h"
#include "cli/offline_options.h"
#include "cli/offline_print.h"
#include "recover/pipeline.h"
#include "torch/libtorch.h"

namespace spear::cli {
namespace {

void set_threads(const CommonOptions& common) {
  const int threads = common.threads > 0 ? common.threads : usable_cores();
  at::set_num_threads(threads);
}

/// What torch throws when a device or the host has no memory left, as the error that it is.
int with_memory_errors(const std::function<int()>& command) {
  const auto error = [](const std::exception& cause) {
    const std::string text = cause.what();
    return out_of_resources("out of memory: " + text.substr(0, text.find('\n')), "",
                            "close other programs; a smaller --preset needs less, and --resume continues this run");
  };
  try {
    return command();
  } catch (const c10::OutOfMemoryError& cause) {
    throw error(cause);
  } catch (const c10::Error& cause) {  // the allocator of the host has no type of its own
    if (std::string_view(cause.what()).find("not enough memory") == std::string_view::npos) throw;
    throw error(cause);
  }
}

/// Nobody should find out from another program's error.
void say_who_runs_it(const RecoverOptions& options, const nlohmann::json& manifest) {
  if (manifest.at("recipe").at("rotation") != name(Rotation::stream)) return;
  log::info("the stream is rotated, so SPEAR alone runs {0}; for other programs: spear export {0} --format gptq --out DIR, or --rotate none",
            shell_quoted(options.out));
}

int run_recover(const OfflineOptions& options) {
  apply(*options.common);
  set_threads(*options.common);
  const RecoverOptions recover_options = options.resolve();
  if (options.dry_run) return print_plan(recover_options, PlannedCommand::recover, *options.common);
  const auto manifest = recover(recover_options);
  if (options.common->json) {
    print_json(manifest);
  } else {
    print_results(manifest);
  }
  say_who_runs_it(recover_options, manifest);
  print_next(*options.common, fmt::format("spear generate --model {} --chat --prompt 'What is the capital of France?'",
                                          shell_quoted(recover_options.out)));
  return 0;
}

int run_quantize(const OfflineOptions& options) {
  apply(*options.common);
  set_threads(*options.common);
  const RecoverOptions quantize_options = options.resolve();
  if (options.dry_run) return print_plan(quantize_options, PlannedCommand::quantize, *options.common);
  const auto manifest = quantize(quantize_options);
  if (options.common->json) {
    print_json(manifest);
  } else {
    print_bytes(manifest);
  }
  say_who_runs_it(quantize_options, manifest);
  print_next(*options.common,
             fmt::format("spear eval --model {} --reference {} --text TEXT", shell_quoted(quantize_options.out),
                         shell_quoted(quantize_options.reference)));
  return 0;
}

int run_diagnose(const OfflineOptions& options) {
  apply(*options.common);
  set_threads(*options.common);
  const auto report = diagnose_model(options.resolve());
  if (options.common->json) {
    print_json(report.json);
  } else {
    fmt::print("{}", damage_table(report.damage, 30));
  }
  print_next(*options.common, fmt::format("spear recover --model {} --out OUT", shell_quoted(options.model)));
  return 0;
}

void add_commands(CommandLine& line) {
  const auto recover_options = std::make_shared<OfflineOptions>();
  auto& recover_command =
      line.add("recover", "Make a 4-bit model with compensators from a full-precision one.",
               {"spear recover --model model.gguf --out recovered",
                "spear recover --model llama/ --preset standard --text wiki.txt --out recovered --resume"},
               [recover_options] { return with_memory_errors([&] { return run_recover(*recover_options); }); });
  recover_options->add_model(recover_command, "full-precision model: GGUF file or Hugging Face directory");
  recover_options->add_backbone(recover_command, false);
  recover_options->add_output(recover_command);
  recover_options->add_recipe(recover_command);
  recover_options->add_measure(recover_command);
  recover_command.add_flag("--dry-run", recover_options->dry_run, "print plan, bytes, memory and time, and stop");

  const auto calibrate_options = std::make_shared<OfflineOptions>();
  auto& calibrate_command =
      line.add("calibrate", "Train compensators for a 4-bit model that exists already; its codes stay as they are.",
               {"spear calibrate --model model-w4/ --reference model/ --out recovered",
                "spear calibrate --model model-w4/ --reference model.gguf --budget 0.5% --out recovered"},
               [calibrate_options] { return with_memory_errors([&] { return run_recover(*calibrate_options); }); });
  calibrate_options->add_reference(calibrate_command);
  calibrate_options->add_backbone(calibrate_command, true);
  calibrate_options->add_output(calibrate_command);
  calibrate_options->add_recipe(calibrate_command);
  calibrate_options->add_measure(calibrate_command);

  const auto quantize_options = std::make_shared<OfflineOptions>();
  quantize_options->quantizer = "rtn";
  auto& quantize_command =
      line.add("quantize", "Quantize a model to 4 bit, without training.",
               {"spear quantize --model model.gguf --out model-w4",
                "spear quantize --model model.gguf --quantizer gptq --scheme w4-g128-sym --out model-w4"},
               [quantize_options] { return with_memory_errors([&] { return run_quantize(*quantize_options); }); });
  quantize_options->add_model(quantize_command, "full-precision model: GGUF file or Hugging Face directory");
  quantize_options->add_output(quantize_command);
  quantize_options->add_recipe(quantize_command);
  quantize_command.add_flag("--dry-run", quantize_options->dry_run, "print bytes, memory and time, and stop");

  const auto diagnose_options = std::make_shared<OfflineOptions>();
  diagnose_options->quantizer = "rtn";
  auto& diagnose_command = line.add(
      "diagnose", "Measure which modules quantization damages most.",
      {"spear diagnose --model model.gguf", "spear diagnose --model model.gguf --preset standard --json > damage.json"},
      [diagnose_options] { return with_memory_errors([&] { return run_diagnose(*diagnose_options); }); });
  diagnose_options->add_model(diagnose_command, "full-precision model: GGUF file or Hugging Face directory");
  diagnose_options->add_workspace(diagnose_command);
  diagnose_options->add_recipe(diagnose_command);
}

}  // namespace
}  // namespace spear::cli

int main(int argc, char** argv) {
  spear::cli::use_known_blas_kernels(argv);
  spear::keep_freed_memory();
  // oneDNN keeps compiled kernels of the last 1,024 shapes, megabytes each; a growing KV cache has a new shape per
  // token.
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256", /*overwrite=*/0);
  spear::cli::CommandLine line("spear",
                               "4-bit language models with the quality that quantization took (offline commands).");
  spear::cli::add_commands(line);
  return line.run(argc, argv);
}
