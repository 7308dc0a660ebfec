// Models of the llama architecture in GGUF files.
#pragma once

#include "io/gguf.h"
#include "model/weights.h"

namespace spear {

/// Throws Error(bad_input) naming the architecture or the metadata key that is not supported.
ModelConfig read_gguf_config(const GgufFile& file);

/// Dequantized to f32, q and k rows back in half-split order; not yet validated.
ModelWeights read_gguf_weights(const GgufFile& file);

}  // namespace spear
