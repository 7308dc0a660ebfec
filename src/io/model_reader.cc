#include "io/model_reader.h"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "io/checkpoint.h"
#include "io/gguf_model.h"
#include "io/hf_config.h"
#include "io/untrusted.h"

namespace spear {
namespace {

namespace fs = std::filesystem;

ModelKind kind_of_file(const fs::path& path) {
  const MappedFile file(path);
  if (file.bytes().size() >= 4 && std::memcmp(file.bytes().data(), "GGUF", 4) == 0) return ModelKind::gguf;
  throw bad_input("not a GGUF file", path.string(),
                  path.extension() == ".safetensors" ? "pass the directory that holds it and its config.json"
                                                     : "pass a GGUF file or a model directory");
}

}  // namespace

const char* name(ModelKind kind) {
  switch (kind) {
    case ModelKind::gguf:
      return "GGUF file";
    case ModelKind::huggingface:
      return "Hugging Face directory";
    case ModelKind::checkpoint:
      return "SPEAR checkpoint";
  }
  return "?";
}

ModelKind kind_of_model(const fs::path& path) {
  std::error_code failure;
  if (!fs::exists(path, failure)) throw bad_input("no such file or directory", path.string(), "check the path");
  if (!fs::is_directory(path, failure)) return kind_of_file(path);
  if (gguf_of_checkpoint(path)) return ModelKind::checkpoint;
  const fs::path config = path / "config.json";
  if (!fs::exists(config, failure)) {
    throw bad_input("no config.json in this directory", path.string(),
                    "pass a GGUF file or the directory of a complete model");
  }
  const bool quantized = read_json_object(config).contains("quantization_config");
  return quantized || fs::exists(path / "spear.json", failure) ? ModelKind::checkpoint : ModelKind::huggingface;
}

bool is_weights_file(const fs::path& file) {
  const auto extension = file.extension();
  return extension == ".safetensors" || extension == ".gguf";
}

std::optional<fs::path> gguf_of_model(const fs::path& path) {
  if (kind_of_model(path) == ModelKind::gguf) return path;
  return gguf_of_checkpoint(path);
}

DType weights_type(const fs::path& path) {
  if (gguf_of_model(path)) return DType::f32;
  const nlohmann::json config = read_json_object(path / "config.json");
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (const auto found = config.find(key); found != config.end() && *found == "float32") return DType::f32;
  }
  return DType::bf16;
}

ModelConfig read_model_config(const fs::path& path) {
  if (const auto gguf = gguf_of_model(path)) return read_gguf_config(GgufFile(*gguf));
  return read_hf_directory_config(path).model;
}

namespace {

ModelWeights read(const fs::path& path, bool keep_quantized) {
  if (kind_of_model(path) != ModelKind::gguf) return read_checkpoint(path);
  ModelWeights weights = read_gguf_weights(GgufFile(path), keep_quantized);
  weights.validate(path.string());
  return weights;
}

}  // namespace

ModelWeights read_model(const fs::path& path) { return read(path, false); }

ModelWeights read_backbone(const fs::path& path) { return read(path, true); }

}  // namespace spear
