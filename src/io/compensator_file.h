// compensators.safetensors: A, B, scales and gate of every compensated module; a shared A is stored once.
#pragma once

#include <filesystem>

#include "model/weights.h"

namespace spear {

/// Writes every compensator of `weights`. Throws Error(failed) when an A is shared by modules that read different
/// inputs.
void write_compensators(const std::filesystem::path& path, const ModelWeights& weights);

/// Size of that file, header included; 0 without compensators. This is what the budget counts.
std::int64_t compensator_file_bytes(const ModelWeights& weights);

/// Attaches the file's compensators to the modules of `weights`, whose config is set. Throws Error(bad_input) on an
/// unknown format version or gate kind, on a module that does not exist, on shapes that disagree, and on tensors left
/// over.
void read_compensators(const std::filesystem::path& path, ModelWeights& weights);

}  // namespace spear
