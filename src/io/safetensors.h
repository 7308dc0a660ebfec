// safetensors: named tensors behind a JSON header. Read without copying, written without building the file in memory.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "tensor/tensor.h"

namespace spear {

using TensorMap = std::map<std::string, Tensor, std::less<>>;

struct Safetensors {
  TensorMap tensors;  ///< views of the mapped file (copies where the file is not aligned)
  std::map<std::string, std::string> metadata;
};

/// Reads one file. Throws Error(bad_input) naming file and tensor when the header or any offset, shape or dtype is
/// wrong: tensors must cover the data exactly, without gaps or overlaps.
Safetensors read_safetensors(const std::filesystem::path& path);

/// All tensors of a Hugging Face directory: model.safetensors, or the shards of model.safetensors.index.json.
/// Throws Error(bad_input) naming a shard that is missing or lies outside the directory.
TensorMap read_safetensors_directory(const std::filesystem::path& directory);

/// Writes a file atomically; wider elements first, then by name, so that every tensor is aligned and equal input gives
/// equal bytes. Throws Error(out_of_resources) when the disk is full.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata);

/// The tensor of that name; throws Error(bad_input) naming it and `where` if it is missing.
const Tensor& require_tensor(const TensorMap& tensors, const std::string& name, const std::string& where);

}  // namespace spear
