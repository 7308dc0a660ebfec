#include "engine/profile.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "engine/fusion_profile.h"

namespace spear::cli {
namespace {

struct Options {
  ProfileOptions profile;
  std::string out;
  bool kernels = false;
};

/// By shape: what the operation takes without a compensator, what each way of fusing adds, and the one that is chosen.
void print_kernels(const std::vector<FusionTiming>& timings) {
  fmt::print("{:>6} {:>6} {:>5} {:>5} {:>7} {:>10}", "rows", "cols", "ranks", "times", "tokens", "plain us");
  for (const Fusion fusion : kFusions) fmt::print(" {:>9}", fusion_name(fusion));
  fmt::print("   choice\n");
  for (const FusionTiming& t : timings) {
    fmt::print("{:>6} {:>6} {:>5} {:>5} {:>7} {:>10.1f}", t.shape.rows, t.shape.cols, t.shape.ranks, t.count, t.tokens, t.plain_us);
    for (const Fusion fusion : kFusions) fmt::print(" {:>+9.2f}", t.us(fusion) - t.plain_us);
    fmt::print("   {}\n", fusion_name(t.best()));
  }
}

/// What all compensators of a step cost with the choices made, and what each fixed choice would lose.
nlohmann::json fusion_summary(const std::vector<FusionTiming>& timings) {
  auto out = nlohmann::json::array();
  for (const std::int64_t tokens : FusionTable::kTokens) {
    double plain = 0;
    for (const FusionTiming& t : timings) plain += t.tokens == tokens ? static_cast<double>(t.count) * t.plain_us : 0.0;
    if (plain == 0) continue;
    const double chosen = added_us(timings, tokens, Fusion::automatic);
    nlohmann::json entry = {{"tokens", tokens}, {"plain_us", plain}, {"added_us", chosen}};
    for (const Fusion fusion : kFusions) entry["loss_us"][fusion_name(fusion)] = added_us(timings, tokens, fusion) - chosen;
    out.push_back(std::move(entry));
  }
  return out;
}

void print_fusion_summary(const std::vector<FusionTiming>& timings) {
  fmt::print("\n{:>7} {:>14} {:>20}   each fixed choice would lose, us\n", "tokens", "linears, us", "compensators add");
  for (const auto& entry : fusion_summary(timings)) {
    const double plain = entry.at("plain_us"), added = entry.at("added_us");
    fmt::print("{:>7} {:>14.0f} {:>12.1f} {:>+5.1f} %  ", entry.at("tokens").get<std::int64_t>(), plain, added, 100 * added / plain);
    for (const Fusion fusion : kFusions) {
      fmt::print(" {} {:.1f}", fusion_name(fusion), entry.at("loss_us").at(fusion_name(fusion)).get<double>());
    }
    fmt::print("\n");
  }
}

int run_kernels(const CommonOptions& common, const ModelOptions& model_options, const Options& options, CpuModel& model) {
  const auto timings = profile_fusion(model, options.profile, options.profile.seconds);
  if (timings.empty()) {
    throw usage_error("this model has no compensator on a 4-bit linear", "--kernels", "give a recovered model, without --activations a32");
  }
  LatencyTable table;
  table.kernels = timings;
  if (common.json) {
    print_json({{"schema", "spear.kernels/1"}, {"isa", model.isa()}, {"threads", model.threads()}, {"activations", model_options.activations},
                {"kernels", to_json(table).at("kernels")}, {"steps", fusion_summary(timings)}});
  } else {
    print_kernels(timings);
    print_fusion_summary(timings);
  }
  print_next(common, fmt::format("spear profile --model {}   # keeps these choices, and the scheduler's table, with the model",
                                 shell_quoted(model_options.model)));
  return 0;
}

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
  if (!table.kernels.empty()) print_fusion_summary(table.kernels);
  fmt::print("error on {} steps that the table was not made from: median {:.1f} %, p90 {:.1f} %, largest {:.1f} %\n",
             table.held_out.size(), 100 * table.error_quantile(0.5), 100 * table.error_quantile(0.9),
             100 * table.error_quantile(1));
}

int run(const CommonOptions& common, const ModelOptions& model_options, const Options& options) {
  apply(common);
  CpuModel model = load_model(model_options.model, common, model_options);
  order_compensators(model, model_options.model);
  ProfileOptions wanted = options.profile;
  wanted.kv_cache_type = model_options.kv_cache_type;
  if (options.kernels) return run_kernels(common, model_options, options, model);
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
                                "spear profile --model recovered --activations a8 --threads 1 --kernels"},
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
  command.add_flag("--kernels", options->kernels,
                   "Only which way of fusing a compensator is fastest, by shape and tokens; nothing is written")
      ->group("Measurement");
  command.add_option("--out", options->out, "Default: latency-KEY.json with the model")->type_name("FILE");
  add_common_options(command, common);
}

}  // namespace spear::cli
