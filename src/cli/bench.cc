#include "engine/bench.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "engine/random_weights.h"
#include "io/model_reader.h"

namespace spear::cli {
namespace {

struct Options {
  std::string shape, scheme = "w4-channel-sym", format = "table";
  std::int64_t vocabulary = 49152;
  RandomWeightsOptions random;
  BenchOptions bench;
};

CpuModel load(const CommonOptions& common, const ModelOptions& model, Options& options) {
  if (model.model.empty() == options.shape.empty()) {
    throw usage_error("nothing to measure, or two things", "bench", "give either --model PATH or --shape NAME");
  }
  if (!model.model.empty()) {
    CpuModel loaded = load_model(model.model, common, model);
    use_measured_kernels(loaded, model);
    return loaded;
  }
  options.random.scheme = parse_scheme(options.scheme);
  return make_model(random_weights(shape_config(options.shape, options.vocabulary), options.random), options.shape,
                    common, model);
}

int run(CommonOptions common, const ModelOptions& model_options, Options options) {
  common.json = common.json || options.format == "json";
  apply(common);
  if (options.bench.threads.empty()) options.bench.threads = {common.threads};
  options.bench.compensators_on = model_options.density() > 0;
  options.bench.compensators_off = model_options.compensators == "both" || model_options.density() == 0;
  CpuModel model = load(common, model_options, options);
  const BenchReport report = run_bench(model, options.bench, [](const std::string& test) { log::info("{}", test); });
  if (common.json) {
    auto json = to_json(report);
    json["model"] = model_options.model.empty() ? options.shape : model_options.model;
    json["isa"] = model.isa();
    json["activations"] = model_options.activations;
    json["compensator_density"] = model_options.density();
    json["kv_cache_dtype"] = name(model_options.kv_cache_type);
    json["head_dtype"] = model_options.head_type;
    print_json(json);
  } else {
    const auto text = options.format == "csv"        ? to_csv(report)
                      : options.format == "markdown" ? to_markdown(report)
                                                     : to_table(report);
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  return 0;
}

}  // namespace

void add_bench(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<ModelOptions>();
  auto options = std::make_shared<Options>();
  model->compensators = "both";
  options->bench.threads.clear();
  CLI::App& command =
      line.add("bench", "Measure tokens per second beside what the memory allows",
               {"spear bench --model recovered --batch 1,8,32",
                "spear bench --shape llama-1b --prompt-tokens 512 --threads 1,2 --activations a8 --json"},
               [=] { return run(*common, *model, *options); });
  command.add_option("--model", model->model, "Hugging Face directory, GGUF file or SPEAR checkpoint")
      ->type_name("PATH")
      ->group("Model");
  command.add_option("--shape", options->shape, "Random weights: smollm2-135m, llama-1b, llama-3b or llama-7b")
      ->type_name("NAME")
      ->group("Model");
  command.add_option("--vocabulary", options->vocabulary, "Of --shape")->capture_default_str()->group("Model");
  command.add_option("--scheme", options->scheme, "Of --shape")->capture_default_str()->group("Model");
  command.add_option("--budget", options->random.compensator_budget, "Compensators of --shape, as a part of its bytes")
      ->capture_default_str()
      ->group("Model");
  command.add_option("--gate-hidden", options->random.gate_hidden, "Gates of --shape; 0: none")
      ->capture_default_str()
      ->group("Model");
  add_compensators_option(command, model, "both");
  add_kernel_options(command, model);
  add_kv_cache_option(command, &model->kv_cache_type);
  BenchOptions& bench = options->bench;
  const auto list = [&command](const char* name, auto& values, const char* text) {
    command.add_option(name, values, text)->delimiter(',')->type_name("LIST")->capture_default_str()->group("Tests");
  };
  list("--prompt-tokens", bench.prompt_tokens, "Lengths of prefill; 0: none");
  command.add_option("--gen-tokens", bench.gen_tokens, "Steps of decode; 0: none")
      ->capture_default_str()
      ->group("Tests");
  list("--batch", bench.batch, "Sequences that decode together");
  list("--context", bench.context, "Tokens in the cache before decoding");
  command.add_option("--repeats", bench.repeats, "Of every test; medians are shown")
      ->capture_default_str()
      ->group("Tests");
  command.add_option("--format", options->format, "table, csv, markdown or json")
      ->check(CLI::IsMember({"table", "csv", "markdown", "json"}).description(""))
      ->type_name("NAME")
      ->capture_default_str();
  add_common_options(command, common);
  command.remove_option(command.get_option("--threads"));
  list("--threads", bench.threads, "Thread counts; default: every usable core");
}

}  // namespace spear::cli
