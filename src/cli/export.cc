#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "io/gguf_model_writer.h"
#include "io/gptq_writer.h"
#include "io/model_reader.h"
#include "text/gguf_export.h"
#include "text/tokenizer.h"

namespace spear::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model, format, out, tokenizer;
  std::string embeddings = "q8_0";
  bool force = false;
};

/// What stands beside the weights in a Hugging Face directory; a GGUF file's tokenizer is written anew.
void copy_texts(const fs::path& model, const fs::path& directory) {
  if (!fs::is_directory(model)) {
    const Tokenizer tokenizer = load_tokenizer(model);
    write_file_atomic(directory / "tokenizer.json", tokenizer.to_tokenizer_json());
    write_file_atomic(directory / "tokenizer_config.json", tokenizer.to_tokenizer_config_json());
    return;
  }
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                           "special_tokens_map.json", "tokenizer.model"}) {
    if (fs::exists(model / name)) write_file_atomic(directory / name, read_text_file(model / name));
  }
}

nlohmann::json export_gptq(const ModelWeights& weights, const Options& options) {
  StagedDirectory staged(options.out, options.force);
  const GptqExport result = write_gptq_model(staged.path(), weights);
  copy_texts(options.model, staged.path());
  staged.commit();
  return {{"checkpoint_format", result.checkpoint_format}};
}

nlohmann::json export_gguf(const ModelWeights& weights, const Options& options) {
  std::optional<GgufFile> source;
  const bool is_file = !fs::is_directory(options.model);
  if (!options.tokenizer.empty() || is_file) source.emplace(options.tokenizer.empty() ? options.model : options.tokenizer);
  std::variant<GgufTokenizer, const GgufFile*> tokenizer = source ? &*source : nullptr;
  if (!source) tokenizer = gguf_tokenizer_of(load_tokenizer(options.model), weights.config.vocab_size, options.model);
  const fs::path model(options.model);
  write_gguf_model(options.out, weights, tokenizer,
                   {(model.has_filename() ? model : model.parent_path()).stem().string(), options.embeddings == "q8_0"});
  return {{"embeddings", options.embeddings}};
}

int run(const CommonOptions& common, const Options& options) {
  apply(common);
  std::error_code ignored;
  if (!options.force && fs::exists(options.out, ignored)) {
    throw usage_error("output exists already", options.out, "choose another --out, or pass --force to replace it");
  }
  const ModelWeights weights = read_model(options.model);
  const std::int64_t compensators = compensator_bytes(weights);
  nlohmann::json document =
      options.format == "gptq" ? export_gptq(weights, options) : export_gguf(weights, options);
  if (compensators > 0) {
    log::info("compensators ({}) are not part of this format", format_bytes(static_cast<double>(compensators)));
  }
  document["schema"] = "spear.export/1";
  document["model"] = options.model;
  document["format"] = options.format;
  document["out"] = options.out;
  document["compensator_bytes_left_out"] = compensators;
  if (common.json) {
    print_json(document);
  } else {
    fmt::print("{}\n", options.out);
  }
  print_next(common, fmt::format("spear inspect --model {}", shell_quoted(options.out)));
  return 0;
}

}  // namespace

void add_export(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("export", "Write a model in another program's format",
                               {"spear export recovered --format gguf --out recovered.gguf",
                                "spear export recovered --format gptq --out recovered-gptq"},
                               [=] { return run(*common, *options); });
  command.add_option("--model,model", options->model, "SPEAR checkpoint, or any 4-bit model that spear reads")
      ->type_name("PATH")
      ->required()
      ->group("Model");
  command
      .add_option("--format", options->format,
                  "gptq: a Hugging Face directory in GPTQ; gguf: a file for llama.cpp, weights exactly as they are")
      ->check(CLI::IsMember({"gptq", "gguf"}).description(""))
      ->type_name("gptq|gguf")
      ->required()
      ->group("Output");
  command.add_option("--out", options->out, "The directory or file")->type_name("PATH")->required()->group("Output");
  command.add_flag("--force", options->force, "Replace what is there")->group("Output");
  command
      .add_option("--embeddings", options->embeddings,
                  "gguf: embedding and head in Q8_0, or as the checkpoint stores them (exact)")
      ->check(CLI::IsMember({"q8_0", "stored"}).description(""))
      ->type_name("q8_0|stored")
      ->capture_default_str()
      ->group("Output");
  command.add_option("--tokenizer", options->tokenizer, "gguf: copy the tokenizer of this GGUF file")
      ->type_name("FILE")
      ->group("Output");
  add_common_options(command, common);
}

}  // namespace spear::cli
