// The tensors of a model by Hugging Face name, as every directory that we write holds them.
#pragma once

#include <functional>
#include <string>

#include "io/safetensors.h"
#include "model/weights.h"

namespace spear {

/// Adds the tensors of a packed linear; the map may view `matrix`.
using PutLinear = std::function<void(TensorMap& tensors, const std::string& module, const W4Matrix& matrix)>;

/// Views of `weights` where nothing is converted. `quantized`: embedding, head, gains and biases are stored as
/// write_checkpoint documents it; otherwise as they are.
TensorMap stored_tensors(const ModelWeights& weights, bool quantized, const PutLinear& put_linear);

/// Throws Error(usage) for a model that the format's readers would run without rotating its stream.
void require_plain_stream(const ModelConfig& config);

/// F32 embeddings in F16, or BF16 where a value exceeds its range.
Tensor store_embedding(const Tensor& tensor);

}  // namespace spear
