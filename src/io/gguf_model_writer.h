// A model as a GGUF file for llama.cpp and its relatives.
#pragma once

#include <filesystem>
#include <variant>

#include "io/gguf.h"
#include "model/weights.h"

namespace spear {

struct GgufExportOptions {
  std::string name;              ///< general.name
  bool int8_embeddings = true;  ///< embedding and head in Q8_0; otherwise in their own type
};

/// Writes the model without its compensators: packed linears in Q4_0 (symmetric) or Q5_0 (asymmetric), exactly; dense
/// ones in their own type; gains and biases in F32; rows of q and k as llama.cpp wants them. `tokenizer` is one that was
/// read from a checkpoint, or a GGUF file whose tokenizer is copied byte for byte. Before it appears under its name, the
/// file is read back: the config must be the same, and every value of linears and gains.
/// Throws Error(usage) naming what GGUF, or llama.cpp's graph of this family, cannot express: a row that is no multiple
/// of 32, an option, a vocabulary of another size.
void write_gguf_model(const std::filesystem::path& path, const ModelWeights& weights,
                      const std::variant<GgufTokenizer, const GgufFile*>& tokenizer, const GgufExportOptions& options);

}  // namespace spear
