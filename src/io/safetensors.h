// safetensors: named tensors behind a JSON header. Read without copying, written without building the file in memory.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

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

/// Size of the file that write_safetensors makes.
std::int64_t safetensors_bytes(const TensorMap& tensors, const std::map<std::string, std::string>& metadata);

/// Moves a tensor out of the map, so that what nobody asked for is left. Throws Error(bad_input) naming the tensor and
/// `where` when it is missing or when its dtype (`types`) or its shape is another.
Tensor take_tensor(TensorMap& tensors, const std::string& name, const Shape& shape, std::initializer_list<DType> types,
                   const std::string& where);

/// Elements of a tensor of exactly this element type.
template <class T>
std::vector<T> to_vector(const Tensor& tensor) {
  const auto values = tensor.as<T>();
  return {values.begin(), values.end()};
}

/// A tensor that views `values`, which must outlive it.
template <class T>
Tensor view_of(DType type, Shape shape, const std::vector<T>& values) {
  return Tensor(type, std::move(shape), std::as_bytes(std::span(values)), nullptr);
}

}  // namespace spear
