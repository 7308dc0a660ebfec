// SPEAR checkpoints (design §3): a compressed-tensors "pack-quantized" model that other tools read, plus
// compensators.safetensors and spear.json that only SPEAR reads.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "model/weights.h"

namespace spear {

inline constexpr const char* kManifestSchema = "spear.manifest/1";
inline constexpr const char* kGgufModel = "model.gguf";  ///< the backbone of a checkpoint that keeps a GGUF file

/// Texts that travel with the weights. An empty one is not written.
struct CheckpointFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  std::string generation_config_json;
};

/// Writes config.json, model.safetensors, compensators.safetensors (if any), `files` and spear.json into an existing
/// directory, normally StagedDirectory::path(). config.json comes last: what an interrupted call leaves behind can't be
/// read as a model. Packed linears must share one scheme; linears that are dense stay
/// dense and are listed under "ignore". With packed linears, f32 embedding and head are stored in F16 (BF16 if a value
/// exceeds F16's range), f32 gains in F16 where that is exact. `manifest` becomes spear.json with "schema",
/// "embedding_budget_bytes" and "files" (name: SHA-256 of every other file) set.
/// Throws Error(out_of_resources) when the disk is full.
void write_checkpoint(const std::filesystem::path& directory, const ModelWeights& weights, const CheckpointFiles& files,
                      nlohmann::json manifest);

/// A checkpoint whose backbone is a GGUF file, into an existing directory: model.gguf, a copy of `gguf` byte for byte,
/// compensators.safetensors (if `weights`, the model of that file, has compensators), and spear.json, last, as above.
/// `sha256` is what was read from `gguf`; Throws Error(bad_input) when the file has changed since.
void write_gguf_checkpoint(const std::filesystem::path& directory, const std::filesystem::path& gguf,
                           const std::string& sha256, const ModelWeights& weights, nlohmann::json manifest);

/// The GGUF file of such a checkpoint; nothing for any other directory.
std::optional<std::filesystem::path> gguf_of_checkpoint(const std::filesystem::path& directory);

/// The same model with embedding, head and gains rounded as write_checkpoint stores them beside packed linears: what is
/// measured before writing is what will be read.
ModelWeights with_stored_embeddings(ModelWeights weights);

/// Reads a checkpoint, or any Hugging Face directory with dense or 4-bit weights, and validates it. What a checkpoint's
/// GGUF file holds quantized stays so.
/// Hashes are not checked (verify_checkpoint does).
ModelWeights read_checkpoint(const std::filesystem::path& directory);

/// spear.json; throws Error(bad_input) if it is absent, malformed or of an unknown schema.
nlohmann::json read_manifest(const std::filesystem::path& directory);

/// Compares every file named in spear.json with its SHA-256. Throws Error(bad_input) naming the first that
/// is missing or differs.
void verify_checkpoint(const std::filesystem::path& directory);

}  // namespace spear
