// Models of the supported architectures in GGUF files.
#pragma once

#include "io/gguf.h"
#include "model/weights.h"

namespace spear {

/// Throws Error(bad_input) naming the architecture or the metadata key that is not supported.
ModelConfig read_gguf_config(const GgufFile& file);

/// Dequantized to f32, rows of q and k back in half-split order where llama.cpp permutes them; not yet validated.
/// `keep_q4_0`: linears in Q4_0 stay packed, bit for bit (groups of 32, symmetric, d may be negative).
ModelWeights read_gguf_weights(const GgufFile& file, bool keep_q4_0 = false);

}  // namespace spear
