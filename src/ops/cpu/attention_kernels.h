// Single-threaded building blocks of paged attention, one table per instruction set, from attention_kernels_impl.h.
//
// A block holds kBlockTokens tokens of one key/value head, laid out so that both products of attention run over
// whole vectors without a horizontal sum (pairs for VDPBF16PS; n is the token, c the column):
//   keys    [head_dim / 2][n][2]                   scores = sum over column pairs, tokens in lanes
//   values  [columns / 32][kBlockTokens / 2][c][2]  outputs = sum over token pairs, columns in lanes
// f32 has single elements in place of pairs; int8 keys and values are each followed by a float scale per token. Keys and
// values are two halves of equal size: a cache of many blocks holds all the keys of a head, then all the values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "model/paged_model.h"

namespace spear {

inline constexpr std::int64_t kBlockTokens = 32;     // = width of a value panel
inline constexpr std::int64_t kSegmentTokens = 256;  // softmax is local to segments at absolute positions
inline constexpr std::int64_t kSegmentBlocks = kSegmentTokens / kBlockTokens;

/// Sizes and byte offsets of a block of one head, from its keys on; plain data, see block_layout().
struct KvBlockLayout {
  KvCacheType type = KvCacheType::bf16;
  std::int64_t head_dim = 0;
  std::int64_t key_steps = 0;    ///< key pairs (f32: columns)
  std::int64_t query_floats = 0;  ///< room of a packed query
  std::int64_t value_steps = 0;  ///< token pairs (f32: tokens) per block
  std::int64_t panels = 0;       ///< of 32 columns
  std::int64_t panel_bytes = 0, values = 0, key_scales = 0, value_scales = 0;
  std::int64_t half_bytes = 0;  ///< from a block to its neighbour
  std::int64_t bytes = 0;       ///< of both halves
};

/// How many pieces (2 KB of bf16) ahead of its reads attention asks memory, and whether into L1 or L2.
struct Prefetch {
  std::int64_t pieces = 6;
  bool into_l1 = false;
};

/// What is best on this processor, as far as that was measured (docs/engine.md).
Prefetch prefetch_of_this_processor();

/// One segment of the keys and values of a head against the queries that share the head.
struct SegmentTask {
  const KvBlockLayout* layout = nullptr;
  const std::byte* const* blocks = nullptr;  ///< [ceil(tokens / kBlockTokens)]
  const std::byte* const* next = nullptr;    ///< blocks to prefetch, [next_count]
  std::int64_t next_count = 0;
  Prefetch prefetch;
  std::int64_t tokens = 0;  ///< in (0, kSegmentTokens], what the last row sees
  std::int64_t rows = 0, group = 1;
  std::int64_t first_visible = 0;            ///< row r sees clamp(first_visible + r / group, 0, tokens) tokens
  std::int64_t window = 0;  ///< of these it sees the last `window` before first_visible + r / group; 0: all
  const float* queries = nullptr;            ///< [rows, query_floats], each of pack_query
  float* scores = nullptr;                   ///< scratch [rows, kSegmentTokens]
  float* weights = nullptr;                  ///< scratch [rows, kSegmentTokens]
  float *maxima = nullptr, *sums = nullptr;  ///< out [rows], of 2^(score - maximum); the sum is 0 where nothing is seen
  float* mixed = nullptr;                    ///< out [rows, 32 * panels]: sum of 2^(score - maximum) * value
};

struct AttentionKernels {
  const char* isa;

  /// out = head with the pairs (i, i + half) rotated; out may be head.
  void (*rotate)(const float* head, const float* cos, const float* sin, std::int64_t half, float* out);

  /// Stores one token; the tokens of a step may come in any order and from any thread. `last`: the sequence has no
  /// token behind it yet.
  void (*append)(const KvBlockLayout& layout, std::byte* block, std::int64_t slot, bool last, const float* key,
                 const float* value);

  /// out [query_floats] = head * scale in the form that `segment` reads: floats, or pairs rounded to bf16.
  void (*pack_query)(const KvBlockLayout& layout, const float* head, float scale, float* out);

  /// Scores are in units of log 2: the queries carry log2(e) and the model's scale.
  void (*segment)(const SegmentTask& task);

  /// Merges a segment of one row into the running state (maximum, sum, mixed [width]); an empty segment changes
  /// nothing, an empty state is replaced.
  void (*merge)(float maximum, float sum, const float* mixed, std::int64_t width, float* running_maximum,
                float* running_sum, float* running);
};

/// `blocks`: how many lie side by side.
KvBlockLayout block_layout(KvCacheType type, std::int64_t head_dim, std::int64_t blocks = 1);

/// Tables that this machine can run, best first. "avx512bf16" multiplies pairs of bf16; all others widen them and keep
/// queries and weights in float32.
std::span<const AttentionKernels* const> available_attention_kernels();

/// The best of them whose name begins with `isa`, a name of ops/cpu/kernels.h. Throws Error(usage) if there is none.
const AttentionKernels& attention_kernels_for(std::string_view isa);

}  // namespace spear
