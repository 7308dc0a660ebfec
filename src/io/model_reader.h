// One door for every weight format: a path goes in, checked ModelWeights come out.
#pragma once

#include <filesystem>
#include <optional>

#include "model/weights.h"

namespace spear {

enum class ModelKind {
  gguf,         ///< a GGUF file
  huggingface,  ///< a directory with config.json and dense safetensors
  checkpoint,   ///< a directory with 4-bit weights, or a GGUF file as backbone, with or without compensators
};

const char* name(ModelKind kind);  ///< "GGUF file", "Hugging Face directory", "SPEAR checkpoint"

/// Looks at names and headers only. Throws Error(bad_input) saying what is missing.
ModelKind kind_of_model(const std::filesystem::path& path);

/// The GGUF file that holds the model's weights: the path itself, or the one in a checkpoint; nothing for other models.
std::optional<std::filesystem::path> gguf_of_model(const std::filesystem::path& path);

/// Whether a file of a model's directory holds weights, by its name.
bool is_weights_file(const std::filesystem::path& file);

/// Config alone, without reading weights.
ModelConfig read_model_config(const std::filesystem::path& path);

/// How wide most weights of read_model() will be, by header or config alone: f32 of a GGUF file or where config.json says
/// so, else bf16, for any type of 16 bits.
DType weights_type(const std::filesystem::path& path);

/// Reads and validates a model. Dense GGUF tensors become f32 (q and k rows back in half-split order); dense
/// safetensors are views of the mapped files in their own dtype; 4-bit modules stay packed, and so does what is
/// quantized in the GGUF file of a checkpoint. Throws Error(bad_input) naming file, tensor or option for anything
/// unsupported, missing or damaged.
ModelWeights read_model(const std::filesystem::path& path);

/// The same, but linears that a GGUF file holds quantized stay as they are, bit for bit.
ModelWeights read_backbone(const std::filesystem::path& path);

}  // namespace spear
