// What llama.cpp calls the parts of a model, and where it keeps the rows of q and k.
#pragma once

#include <string>
#include <string_view>

#include "model/config.h"

namespace spear {

/// An architecture of llama.cpp and what its graph fixes without asking the file.
struct GgufArchitecture {
  const char* name;
  const char* model_type;
  bool permuted;  ///< q and k rows are stored for interleaved rotary pairs
};

/// By the name in the file, or null.
const GgufArchitecture* find_gguf_architecture(std::string_view name);
/// The one that runs models of this family, or null.
const GgufArchitecture* gguf_architecture_of(const ModelConfig& config);

std::string gguf_linear_name(ModuleId id);                          ///< "blk.3.ffn_up", without ".weight"
std::string gguf_norm_name(NormId id, const ModelConfig& config);  ///< "blk.3.attn_norm.weight"

inline bool has_permuted_rows(const GgufArchitecture& architecture, LinearKind kind) {
  return architecture.permuted && (kind == LinearKind::q_proj || kind == LinearKind::k_proj);
}

/// The row of our half-split order that is stored as `row` where rows are permuted: within a head, stored row 2j + i is
/// row i * head_dim / 2 + j.
inline std::int64_t unpermuted_row(std::int64_t row, std::int64_t head_dim) {
  const std::int64_t in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

}  // namespace spear
