#include "base/error.h"
#include "base/file.h"
#include "io/checkpoint.h"
#include "io/gguf.h"
#include "io/untrusted.h"
#include "text/tokenizer.h"

namespace spear {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxJsonBytes = std::size_t{256} << 20;

/// Null if there is no such file. Vocabularies are large, so twins among keys are not sought: the last one counts, as in
/// `tokenizers`.
nlohmann::json read_json(const fs::path& path) {
  if (!fs::exists(path)) return {};
  return parse_json(read_text_file(path, kMaxJsonBytes), path.string(), /*unique_keys=*/false);
}

Tokenizer load_directory(const fs::path& directory) {
  const fs::path file = directory / "tokenizer.json";
  if (!fs::exists(file)) {
    const bool sentencepiece = fs::exists(directory / "tokenizer.model");
    throw bad_input(sentencepiece ? "only a SentencePiece tokenizer.model is there, which is not supported"
                                  : "there is no tokenizer.json",
                    directory.string(), "copy tokenizer.json from the model's Hugging Face directory");
  }
  nlohmann::json config = read_json(directory / "tokenizer_config.json");
  // Newer checkpoints keep the template in a file of its own; it counts before the one in the configuration.
  if (const fs::path jinja = directory / "chat_template.jinja"; fs::exists(jinja)) {
    if (!config.is_object()) config = nlohmann::json::object();
    config["chat_template"] = read_text_file(jinja, kMaxJsonBytes);
  }
  nlohmann::json generation = read_json(directory / "generation_config.json");
  if (generation.is_null()) generation = read_json(directory / "config.json");
  return Tokenizer::from_json(read_json(file), config, generation, file.string());
}

}  // namespace

Tokenizer load_tokenizer(const fs::path& model) {
  std::error_code error;
  const auto inside = gguf_of_checkpoint(model);
  if (!inside && fs::is_directory(model, error)) return load_directory(model);
  const GgufFile file(inside.value_or(model));
  return Tokenizer::from_gguf(read_gguf_tokenizer(file), file.where());
}

}  // namespace spear
