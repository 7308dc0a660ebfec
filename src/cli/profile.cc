#include "engine/profile.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "engine/scheduler/compensator_order.h"

namespace spear::cli {
namespace {

struct Options {
  ProfileOptions profile;
  std::string out;
};

void print_table(const LatencyTable& table) {
  const auto time = [&](std::int64_t decodes, std::int64_t context, std::int64_t chunk, double density = 1) {
    return table.milliseconds({decodes, decodes * context, chunk, 0, density});
  };
  fmt::print("{:>8} {:>9}", "decodes", "context");
  for (const double chunk : table.base.y) fmt::print(" {:>8}", fmt::format("+{}", chunk));
  fmt::print("   ms, by prompt tokens beside\n");
  for (const double decodes : table.base.x) {
    for (const std::int64_t context : {std::int64_t{32}, std::int64_t{1024}}) {
      if (decodes == 0 && context > 32) continue;
      fmt::print("{:>8} {:>9}", decodes, decodes == 0 ? 0 : context);
      for (const double chunk : table.base.y) {
        fmt::print(" {:>8.2f}", time(static_cast<std::int64_t>(decodes), context, static_cast<std::int64_t>(chunk)));
      }
      fmt::print("\n");
    }
  }
  for (const double rows : table.compensators.y) {
    fmt::print("compensators at {} rows:", rows);
    for (const double density : table.compensators.x) {
      fmt::print(" {:.0f} % {:+.3f} ms", 100 * density, table.compensators.at(density, rows));
    }
    fmt::print("\n");
  }
  fmt::print("error on {} steps that the table was not made from: median {:.1f} %, p90 {:.1f} %, largest {:.1f} %\n",
             table.held_out.size(), 100 * table.error_quantile(0.5), 100 * table.error_quantile(0.9),
             100 * table.error_quantile(1));
}

int run(const CommonOptions& common, const ModelOptions& model_options, const Options& options) {
  apply(common);
  CpuModel model = load_model(model_options.model, true, common, model_options);
  const auto modules = static_cast<std::size_t>(module_count(model.config()));
  model.set_compensator_order(compensator_order(model.weights(), read_module_damage(model_options.model, modules)));
  ProfileOptions wanted = options.profile;
  wanted.kv_cache_type = model_options.kv_cache_type;
  const LatencyKey key = latency_key(model, wanted.kv_cache_type, model_options.head_type, SPEAR_VERSION);
  const std::filesystem::path path =
      options.out.empty() ? latency_table_path(model_options.model, key) : std::filesystem::path(options.out);
  LatencyTable table = profile(model, wanted, [](const std::string& phase) { log::info("{}", phase); });
  table.key = key;
  write_latency_table(path, table);
  if (common.json) {
    auto json = to_json(table);
    json["path"] = path.string();
    print_json(json);
  } else {
    print_table(table);
  }
  log::info("written to {}", path.string());
  print_next(common, fmt::format("spear simulate --table {} --rate 2 --ttft-ms 2000 --itl-ms 60", shell_quoted(path)));
  return 0;
}

}  // namespace

void add_profile(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<ModelOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("profile", "Measure how long steps take on this machine, for the scheduler",
                               {"spear profile --model recovered",
                                "spear profile --model recovered --activations a8 --threads 1 --seconds 20 --json"},
                               [=] { return run(*common, *model, *options); });
  add_model_options(command, model);
  command.remove_option(command.get_option("--compensators"));
  add_kv_cache_option(command, &model->kv_cache_type);
  ProfileOptions& profile = options->profile;
  const auto number = [&](const char* name, auto& value, const char* text) {
    command.add_option(name, value, text)->capture_default_str()->check(CLI::PositiveNumber)->group("Measurement");
  };
  number("--seconds", profile.seconds, "About how long; large models take longer");
  number("--max-num-seqs", profile.max_decodes, "Most sequences that decode together");
  number("--max-chunk", profile.max_chunk, "Most prompt tokens of a step");
  number("--max-context", profile.max_context, "Longest context");
  command.add_option("--out", options->out, "Default: latency-KEY.json with the model")->type_name("FILE");
  add_common_options(command, common);
}

}  // namespace spear::cli
