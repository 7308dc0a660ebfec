#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "engine/mean_gates.h"
#include "io/checkpoint.h"
#include "io/gguf_model_writer.h"
#include "io/gptq_writer.h"
#include "io/lora_writer.h"
#include "io/model_reader.h"
#include "model/stream_rotation.h"
#include "text/gguf_export.h"
#include "text/tokenizer.h"

namespace spear::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model, format, out, tokenizer, text;
  std::int64_t tokens = 4096;
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

std::string model_name(const Options& options) {
  const fs::path model(options.model);
  return (model.has_filename() ? model : model.parent_path()).stem().string();
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
  if (gguf_of_checkpoint(options.model)) {
    throw usage_error(fmt::format("the checkpoint's backbone is a GGUF file: {}", kGgufModel), options.model,
                      "use that file; --format gguf-lora writes the compensators beside it");
  }
  const bool is_file = !fs::is_directory(options.model);
  if (!options.tokenizer.empty() || is_file) source.emplace(options.tokenizer.empty() ? options.model : options.tokenizer);
  std::variant<GgufTokenizer, const GgufFile*> tokenizer = source ? &*source : nullptr;
  if (!source) tokenizer = gguf_tokenizer_of(load_tokenizer(options.model), weights.config.vocab_size, options.model);
  write_gguf_model(options.out, weights, tokenizer, {model_name(options), options.embeddings == "q8_0"});
  return {{"embeddings", options.embeddings}};
}

/// Gates averaged over the first tokens of the user's text. Takes the weights over.
MeanGates mean_gates(ModelWeights weights, const CommonOptions& common, const Options& options) {
  constexpr std::int64_t kLength = 512;
  if (options.text.empty()) {
    throw usage_error("the compensators have gates; an adapter keeps their mean, which is measured on text", "--text",
                      "pass --text with a file of the kind of text that the model will see");
  }
  const Tokenizer tokenizer = load_tokenizer(options.model);
  const auto ids = tokenizer.encode(read_text_file(options.text));
  const auto available = static_cast<std::int64_t>(ids.size());
  const std::int64_t length = std::min({kLength, options.tokens, available});
  const std::int64_t used = length > 0 ? std::min(options.tokens, available) / length * length : 0;
  if (used == 0) throw bad_input("the text has no tokens", options.text, "pass a longer text");
  ModelOptions model_options;
  model_options.activations = "a32";
  CpuModel model = make_model(std::move(weights), options.model, common, model_options);
  log::info("measuring the mean of the gates on {} tokens", used);
  return measure_mean_gates(model, std::span(ids).first(static_cast<std::size_t>(used)), length);
}

nlohmann::json export_adapter(const ModelWeights& weights, const CommonOptions& common, const Options& options) {
  const bool gated = has_gates(weights);
  const auto factors = lora_factors(weights, gated ? mean_gates(weights, common, options) : MeanGates());
  if (options.format == "peft") {
    StagedDirectory staged(options.out, options.force);
    write_peft_adapter(staged.path(), weights.config, factors, options.model);
    staged.commit();
  } else {
    write_gguf_adapter(options.out, weights.config, factors, model_name(options));
  }
  return {{"rank", factors.front().rank}, {"modules", factors.size()}, {"exact", !gated}};
}

bool is_adapter(const Options& options) { return options.format == "peft" || options.format == "gguf-lora"; }

int run(const CommonOptions& common, const Options& options) {
  apply(common);
  std::error_code ignored;
  if (!options.force && fs::exists(options.out, ignored)) {
    throw usage_error("output exists already", options.out, "choose another --out, or pass --force to replace it");
  }
  ModelWeights weights = read_backbone(options.model);
  const std::int64_t compensators = compensator_bytes(weights);
  if (weights.config.rotated_stream && !is_adapter(options)) {
    weights = fold_stream_rotation(std::move(weights));
    log::info("the model's stream is rotated: other programs get the rotation in an embedding and a head of their own");
  }
  nlohmann::json document = is_adapter(options)         ? export_adapter(weights, common, options)
                            : options.format == "gptq" ? export_gptq(weights, options)
                                                       : export_gguf(weights, options);
  if (compensators > 0 && !is_adapter(options)) {
    log::info("compensators ({}) are not part of this format: export them as peft or gguf-lora",
              format_bytes(static_cast<double>(compensators)));
  }
  document["schema"] = "spear.export/1";
  document["model"] = options.model;
  document["format"] = options.format;
  document["out"] = options.out;
  document["compensator_bytes_left_out"] = is_adapter(options) ? 0 : compensators;
  if (common.json) {
    print_json(document);
  } else {
    fmt::print("{}\n", options.out);
  }
  const std::string model = shell_quoted(options.model);
  if (is_adapter(options)) {
    print_next(common, fmt::format("spear export {} --format {}", model, options.format == "peft" ? "gptq --out BASE" : "gguf --out BASE.gguf"));
  } else {
    print_next(common, fmt::format("spear inspect --model {}", shell_quoted(options.out)));
  }
  return 0;
}

}  // namespace

void add_export(CommandLine& line) {
  auto common = std::make_shared<CommonOptions>();
  auto options = std::make_shared<Options>();
  CLI::App& command = line.add("export", "Write a model in another program's format",
                               {"spear export recovered --format gguf --out recovered.gguf",
                                "spear export recovered --format gguf-lora --out compensators.gguf"},
                               [=] { return run(*common, *options); });
  command.add_option("--model,model", options->model, "SPEAR checkpoint, or any 4-bit model that spear reads")
      ->type_name("PATH")
      ->required()
      ->group("Model");
  command
      .add_option("--format", options->format,
                  "Base weights, exactly as they are: gptq (a Hugging Face directory) or gguf (a file for llama.cpp). "
                  "Compensators as an adapter, gates at their mean: peft (a directory) or gguf-lora (a file)")
      ->check(CLI::IsMember({"gptq", "gguf", "peft", "gguf-lora"}).description(""))
      ->type_name("FORMAT")
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
  command.add_option("--text", options->text, "peft, gguf-lora: text on which the mean of gates is measured, if there are any")
      ->type_name("FILE")
      ->group("Gates");
  command.add_option("--tokens", options->tokens, "The first so many tokens of it")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30).description(""))
      ->type_name("N")
      ->capture_default_str()
      ->group("Gates");
  add_common_options(command, common);
}

}  // namespace spear::cli
