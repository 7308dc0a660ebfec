// Models of the supported architectures in GGUF files.
#pragma once

#include "io/gguf.h"
#include "model/weights.h"

namespace spear {

/// Throws Error(bad_input) naming the architecture or the metadata key that is not supported.
ModelConfig read_gguf_config(const GgufFile& file);

/// Dequantized to f32, rows of q and k back in half-split order where llama.cpp permutes them; not yet validated.
/// `keep_quantized`: linears stay as the file has them, bit for bit: Q4_0 packed (groups of 32, symmetric, d may be
/// negative), other quantized types as blocks.
ModelWeights read_gguf_weights(const GgufFile& file, bool keep_quantized = false);

}  // namespace spear
