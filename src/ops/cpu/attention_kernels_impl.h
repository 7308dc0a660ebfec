// Text of every instruction set's attention kernels; included once by each attention_<isa>.cc.
// No function template or inline function of another header is called here: the linker could keep this unit's copy
// of it, with this unit's instructions, for the whole program.
//
// What a row gets never depends on the other rows of its tile: each output has an accumulator of its own that runs
// over keys or values in order, and what a row does not see adds an exact zero. Attention is therefore bit-equal in
// any batch and any chunking.
#pragma once

#include <type_traits>

#include "ops/cpu/attention_formats.h"
#include "ops/cpu/attention_kernels.h"

namespace spear {
namespace {

constexpr std::int64_t kPieceSteps = 16;  // of a prefetch

enum class Fetch { nothing, into_l2, into_l1 };

inline std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

/// Right-hand sides of a product: `steps` steps of each block (last_steps of the last one), `offset` bytes into it.
struct RightBlocks {
  const std::byte* const* blocks;
  std::int64_t count, offset, steps, last_steps;
  Fetch fetch;
  const std::byte* const* ahead;  ///< what to fetch during each piece of kPieceSteps steps; nothing: null
};

/// c[r * ldc + n] = sum_k left[r * lda + k] right[k][n] for kRows rows and 32 columns n of each of kParts right-hand sides
/// that lie one behind the other in a block.
template <class F, Fetch kFetch, int kRows, int kParts>
void product_tile(const typename F::Left* left, std::int64_t lda, const RightBlocks& right, float* c,
                  std::int64_t ldc) {
  constexpr std::int64_t kStepBytes = kBlockTokens * sizeof(typename F::Element);
  for (int column = 0; column < kBlockTokens; column += 2 * kWidth) {
    Floats sums[kRows][2 * kParts] = {};
    const typename F::Left* a = left;
    const std::byte* const* ahead = right.ahead;
    for (std::int64_t j = 0; j < right.count; ++j) {
      const auto* b = reinterpret_cast<const typename F::Element*>(right.blocks[j] + right.offset) + column;
      const std::int64_t steps = j + 1 < right.count ? right.steps : right.last_steps;
      for (std::int64_t begin = 0; begin < steps; begin += kPieceSteps / kParts) {
        const std::int64_t n = at_most(steps - begin, kPieceSteps / kParts);
        const std::byte* next = kFetch != Fetch::nothing ? *ahead++ : nullptr;
        for (std::int64_t i = 0; i < n; ++i, b += kBlockTokens, ++a) {
          if constexpr (kFetch != Fetch::nothing) {
#pragma GCC unroll 4
            for (int line = 0; line < kParts * kStepBytes; line += 64) __builtin_prefetch(next + line, 0, kFetch == Fetch::into_l1 ? 3 : 2);
            next += kParts * kStepBytes;
          }
#pragma GCC unroll 2
          for (int part = 0; part < kParts; ++part) {
            const auto* const at = b + part * right.steps * kBlockTokens;
            const auto right0 = F::load(at), right1 = F::load(at + kWidth);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
              const auto value = F::broadcast(load_vector<typename F::Left>(a + r * lda));  // written as halves
              sums[r][2 * part] = F::multiply_add(value, right0, sums[r][2 * part]);
              sums[r][2 * part + 1] = F::multiply_add(value, right1, sums[r][2 * part + 1]);
            }
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        float* const out = c + r * ldc + part * kBlockTokens + column;
        store_floats(out, sums[r][2 * part]);
        store_floats(out + kWidth, sums[r][2 * part + 1]);
      }
    }
  }
}

/// The first `rows` <= kRows rows, in one tile of just that height.
template <class F, Fetch kFetch, int kRows, int kParts>
void product_rows(std::int64_t rows, const typename F::Left* left, std::int64_t lda, const RightBlocks& right, float* c,
                  std::int64_t ldc) {
  if (rows >= kRows) {
    product_tile<F, kFetch, kRows, kParts>(left, lda, right, c, ldc);
  } else if constexpr (kRows > 1) {
    product_rows<F, kFetch, kRows - 1, kParts>(rows, left, lda, right, c, ldc);
  }
}

template <class F, int kRows, int kParts = 1>
void product(std::int64_t rows, const typename F::Left* left, std::int64_t lda, const RightBlocks& right, float* c,
             std::int64_t ldc) {
  switch (right.fetch) {
    case Fetch::into_l1:
      return product_rows<F, Fetch::into_l1, kRows, kParts>(rows, left, lda, right, c, ldc);
    case Fetch::into_l2:
      return product_rows<F, Fetch::into_l2, kRows, kParts>(rows, left, lda, right, c, ldc);
    case Fetch::nothing:
      return product_rows<F, Fetch::nothing, kRows, kParts>(rows, left, lda, right, c, ldc);
  }
}

/// The pieces of a segment in the order in which they are read; each asks for one some pieces later, so that memory always
/// has enough on order, but no more than the core has room for. The first pieces of the next segment follow the last ones.
struct Pieces {
  static constexpr std::int64_t kMost = 192;  // 12 KB per block and head; heads beyond go without
  const std::byte* at[kMost];
  std::int64_t count = 0, distance = 0;
  Fetch fetch = Fetch::nothing;

  /// Where the product that reads piece `index` and those behind it finds what to ask for.
  const std::byte* const* ahead_of(std::int64_t index) const {
    return fetch == Fetch::nothing ? nullptr : at + index + distance;
  }
  void add(const std::byte* data, std::int64_t steps, std::int64_t step_bytes) {
    for (std::int64_t i = 0; i < steps; i += kPieceSteps, ++count) {
      if (count < kMost) at[count] = data + i * step_bytes;
    }
  }
};

/// Floats between rows, in steps of the left-hand side.
template <class F>
constexpr std::int64_t stride(std::int64_t floats) {
  return floats * static_cast<std::int64_t>(sizeof(float)) / static_cast<std::int64_t>(sizeof(typename F::Left));
}

std::int64_t block_count(const SegmentTask& t) { return (t.tokens + kBlockTokens - 1) / kBlockTokens; }
std::int64_t key_pieces(const SegmentTask& t) { return (t.layout->key_steps + kPieceSteps - 1) / kPieceSteps; }  // of a block

/// Panels of values that are read together: two for few rows, whose sums alone are too few chains to keep the core busy.
template <class F>
std::int64_t panels_at_once(const SegmentTask& t) {
  return t.rows <= F::kRows / 2 && t.layout->panels % 2 == 0 ? 2 : 1;
}

template <class F>
void list_pieces(const SegmentTask& t, Pieces& pieces) {
  constexpr std::int64_t kStepBytes = kBlockTokens * sizeof(typename F::Element);
  const KvBlockLayout& layout = *t.layout;
  const std::int64_t count = block_count(t), panels = panels_at_once<F>(t);
  for (std::int64_t j = 0; j < count; ++j) pieces.add(t.blocks[j], layout.key_steps, kStepBytes);
  for (std::int64_t panel = 0; panel < layout.panels; panel += panels) {
    for (std::int64_t j = 0; j < count; ++j) {
      pieces.add(t.blocks[j] + layout.values + panel * layout.panel_bytes, panels * layout.value_steps, kStepBytes);
    }
  }
  for (std::int64_t j = 0; j < t.next_count; ++j) pieces.add(t.next[j], layout.key_steps, kStepBytes);
  pieces.distance = t.prefetch.pieces;
  pieces.add(t.blocks[0], pieces.distance * kPieceSteps, 0);  // nothing more to ask for
  if (pieces.count <= Pieces::kMost) pieces.fetch = t.prefetch.into_l1 ? Fetch::into_l1 : Fetch::into_l2;
}

std::int64_t visible_tokens(const SegmentTask& t, std::int64_t row) {
  return at_most(at_least(t.first_visible + row / t.group, 0), t.tokens);
}

/// Tokens at the segment's start that lie before the row's window.
std::int64_t hidden_tokens(const SegmentTask& t, std::int64_t row) {
  return t.window == 0 ? 0 : at_most(at_least(t.first_visible + row / t.group - t.window, 0), t.tokens);
}

template <class F>
void score_rows(const SegmentTask& t, const Pieces& pieces) {
  const std::int64_t count = block_count(t);
  const std::int64_t steps = t.layout->key_steps;
  const auto* queries = reinterpret_cast<const typename F::Left*>(t.queries);
  const std::int64_t width = stride<F>(t.layout->query_floats);
  for (std::int64_t block = 0; block < count; ++block) {
    for (std::int64_t row = 0; row < t.rows; row += F::kRows) {
      const std::int64_t rows = at_most(F::kRows, t.rows - row);
      if (visible_tokens(t, row + rows - 1) <= block * kBlockTokens) continue;  // the future of the whole tile
      if (hidden_tokens(t, row) >= (block + 1) * kBlockTokens) continue;              // before its windows
      const RightBlocks keys{t.blocks + block,
                             1,
                             0,
                             steps,
                             steps,
                             row == 0 ? pieces.fetch : Fetch::nothing,
                             pieces.ahead_of(block * key_pieces(t))};
      product<F, F::kRows>(rows, queries + row * width, width, keys, t.scores + row * kSegmentTokens + block * kBlockTokens,
                 kSegmentTokens);
    }
  }
}

/// p where tokens n + lane lie in [hidden, seen), `other` elsewhere.
inline Floats within(std::int64_t n, std::int64_t hidden, std::int64_t seen, Floats p, Floats other) {
  if (n + kWidth > seen) p = lanes_below(seen - n) ? p : other;
  if (n < hidden) p = lanes_below(hidden - n) ? other : p;
  return p;
}

/// part(n, edge) for the vectors of tokens that reach into [hidden, seen); `edge`, a constant, where one reaches out.
template <class Part>
inline __attribute__((always_inline)) void for_vectors(std::int64_t hidden, std::int64_t seen, Part part) {
  std::int64_t n = hidden / kWidth * kWidth;
  if (n < hidden) {
    part(n, std::true_type{});
    n += kWidth;
  }
  for (; n + kWidth <= seen; n += kWidth) part(n, std::false_type{});
  if (n < seen) part(n, std::true_type{});
}

/// Scores of one row -> maximum, sum and weights; of tokens [0, padded) those outside [hidden, seen) weigh zero.
template <class F>
void weigh_row(const SegmentTask& t, std::int64_t row, std::int64_t hidden, std::int64_t seen, std::int64_t padded) {
  float* const scores = t.scores + row * kSegmentTokens;
  auto* const weights = reinterpret_cast<typename F::Weight*>(t.weights + row * kSegmentTokens);
  const KvBlockLayout& layout = *t.layout;
  if (hidden >= seen) hidden = seen = 0;
  Floats largest = filled(-__builtin_inff());
  for_vectors(hidden, seen, [&](std::int64_t n, auto edge) __attribute__((always_inline)) {
    Floats s = load_floats(scores + n);
    if constexpr (F::kScaled) s *= F::scales(t.blocks[n / kBlockTokens] + layout.key_scales, n % kBlockTokens);
    if constexpr (edge) s = within(n, hidden, seen, s, filled(-__builtin_inff()));
    if constexpr (F::kScaled) store_floats(scores + n, s);
    largest = s > largest ? s : largest;
  });
  const float maximum = largest_lane(largest);
  Floats sums = {};
  for (std::int64_t n = 0; n < hidden; n += kWidth) F::store_weights(weights + n, Floats{});
  for_vectors(hidden, seen, [&](std::int64_t n, auto edge) __attribute__((always_inline)) {
    Floats p = F::power_of_two(load_floats(scores + n) - maximum);
    if constexpr (edge) p = within(n, hidden, seen, p, Floats{});
    sums += p;
    if constexpr (F::kScaled) {
      p *= F::scales(t.blocks[n / kBlockTokens] + layout.value_scales, n % kBlockTokens);
      if constexpr (edge) p = within(n, hidden, seen, p, Floats{});  // a scale that is not there yet may be anything
    }
    F::store_weights(weights + n, p);
  });
  for (std::int64_t n = (seen + kWidth - 1) / kWidth * kWidth; n < padded; n += kWidth) {
    F::store_weights(weights + n, Floats{});
  }
  t.maxima[row] = maximum;
  t.sums[row] = sum_of_lanes(sums);
}

template <class F>
void mix_values(const SegmentTask& t, const Pieces& pieces) {
  const std::int64_t width = t.layout->panels * kBlockTokens;
  const std::int64_t first = block_count(t) * key_pieces(t), per_panel = block_count(t) * (t.layout->value_steps / kPieceSteps);
  const std::int64_t panels = panels_at_once<F>(t);
  for (std::int64_t panel = 0; panel < t.layout->panels; panel += panels) {
    const std::int64_t offset = t.layout->values + panel * t.layout->panel_bytes;
    for (std::int64_t row = 0; row < t.rows; row += F::kRows) {
      const std::int64_t rows = at_most(F::kRows, t.rows - row);
      const std::int64_t seen = visible_tokens(t, row + rows - 1);
      const std::int64_t count = (seen + kBlockTokens - 1) / kBlockTokens;
      const std::int64_t last = seen - (count - 1) * kBlockTokens;  // values behind the last token may be anything
      const RightBlocks values{t.blocks,
                               count,
                               offset,
                               t.layout->value_steps,
                               (last + F::kPair - 1) / F::kPair,
                               row == 0 ? pieces.fetch : Fetch::nothing,
                               pieces.ahead_of(first + panel * per_panel)};
      const auto* const weights = reinterpret_cast<const typename F::Left*>(t.weights + row * kSegmentTokens);
      float* const mixed = t.mixed + row * width + panel * kBlockTokens;
      if (panels == 2) {
        product<F, F::kRows / 2, 2>(rows, weights, stride<F>(kSegmentTokens), values, mixed, width);
      } else {
        product<F, F::kRows>(rows, weights, stride<F>(kSegmentTokens), values, mixed, width);
      }
    }
  }
}

template <class F>
void segment_of(const SegmentTask& t) {
  Pieces pieces;
  list_pieces<F>(t, pieces);
  score_rows<F>(t, pieces);
  for (std::int64_t row = 0; row < t.rows; row += F::kRows) {
    const std::int64_t end = at_most(row + F::kRows, t.rows);
    const std::int64_t padded = (visible_tokens(t, end - 1) + 1) / 2 * 2;
    for (std::int64_t r = row; r < end; ++r) {
      weigh_row<F>(t, r, hidden_tokens(t, r), visible_tokens(t, r), padded);
    }
  }
  mix_values<F>(t, pieces);
}

void segment(const SegmentTask& task) {
  switch (task.layout->type) {
    case KvCacheType::f32:
      return segment_of<Float32Format>(task);
    case KvCacheType::bf16:
      return segment_of<Bf16Format>(task);
    case KvCacheType::int8:
      return segment_of<Int8Format>(task);
  }
}

void rotate(const float* head, const float* cos, const float* sin, std::int64_t half, float* out) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    out[i] = a * cos[i] - b * sin[i];
    out[i + half] = b * cos[i] + a * sin[i];
  }
}

void pack_query(const KvBlockLayout& layout, const float* head, float scale, float* out) {
#if defined(__AVX512BF16__)
  if (layout.type != KvCacheType::f32) {
    auto* const halves = reinterpret_cast<std::uint16_t*>(out);
    for (std::int64_t i = 0; i < layout.head_dim; ++i) halves[i] = to_bf16(head[i] * scale);
    if (layout.head_dim % 2 != 0) halves[layout.head_dim] = 0;
    return;
  }
#endif
  for (std::int64_t i = 0; i < layout.head_dim; ++i) out[i] = head[i] * scale;
  if (layout.query_floats > layout.head_dim) out[layout.head_dim] = 0;
}

/// Stores element (token slot, column) of keys and values. A pair of values is read whole, so the last token zeroes
/// the half that has no token yet.
template <class Element, class Convert>
void append_pairs(const KvBlockLayout& layout, std::byte* block, std::int64_t slot, bool last, const float* key,
                  const float* value, Convert convert_key, Convert convert_value) {
  auto* const keys = reinterpret_cast<Element*>(block);
  for (std::int64_t i = 0; i < layout.head_dim; ++i) {
    keys[(i / 2 * kBlockTokens + slot) * 2 + i % 2] = convert_key(key[i]);
  }
  if (layout.head_dim % 2 != 0) keys[(layout.head_dim / 2 * kBlockTokens + slot) * 2 + 1] = 0;
  for (std::int64_t i = 0; i < layout.head_dim; ++i) {
    auto* const panel = reinterpret_cast<Element*>(block + layout.values + i / kBlockTokens * layout.panel_bytes);
    Element* const pair = panel + (slot / 2 * kBlockTokens + i % kBlockTokens) * 2;
    pair[slot % 2] = convert_value(value[i]);
    if (last && slot % 2 == 0) pair[1] = 0;
  }
}

void append_f32(const KvBlockLayout& layout, std::byte* block, std::int64_t slot, const float* key,
                const float* value) {
  auto* const keys = reinterpret_cast<float*>(block);
  auto* const values = reinterpret_cast<float*>(block + layout.values);
  for (std::int64_t i = 0; i < layout.head_dim; ++i) {
    keys[i * kBlockTokens + slot] = key[i];
    values[(i / kBlockTokens * kBlockTokens + slot) * kBlockTokens + i % kBlockTokens] = value[i];
  }
}

float int8_scale(const float* x, std::int64_t n) {
  float largest = 0;
  for (std::int64_t i = 0; i < n; ++i) largest = __builtin_fabsf(x[i]) > largest ? __builtin_fabsf(x[i]) : largest;
  return largest / 127.0F;
}

struct ToBf16 {
  std::uint16_t operator()(float f) const { return to_bf16(f); }
};
struct ToInt8 {
  float inverse;
  std::int8_t operator()(float f) const { return static_cast<std::int8_t>(__builtin_rintf(f * inverse)); }
};

void append(const KvBlockLayout& layout, std::byte* block, std::int64_t slot, bool last, const float* key,
            const float* value) {
  if (layout.type == KvCacheType::f32) return append_f32(layout, block, slot, key, value);
  if (layout.type == KvCacheType::bf16) {
    return append_pairs<std::uint16_t>(layout, block, slot, last, key, value, ToBf16{}, ToBf16{});
  }
  const float key_scale = int8_scale(key, layout.head_dim), value_scale = int8_scale(value, layout.head_dim);
  reinterpret_cast<float*>(block + layout.key_scales)[slot] = key_scale;
  reinterpret_cast<float*>(block + layout.value_scales)[slot] = value_scale;
  const auto inverse = [](float scale) { return ToInt8{scale > 0 ? 1.0F / scale : 0.0F}; };
  append_pairs<std::int8_t>(layout, block, slot, last, key, value, inverse(key_scale), inverse(value_scale));
}

void merge(float maximum, float sum, const float* mixed, std::int64_t width, float* running_maximum, float* running_sum,
           float* running) {
  if (sum == 0) return;
  float keep = 0, take = 1, larger = maximum;
  if (*running_sum != 0) {
    larger = *running_maximum > maximum ? *running_maximum : maximum;
    keep = first_lane(Float32Format::power_of_two(filled(*running_maximum - larger)));
    take = first_lane(Float32Format::power_of_two(filled(maximum - larger)));
    for (std::int64_t i = 0; i < width; ++i) running[i] = running[i] * keep + mixed[i] * take;
  } else {
    for (std::int64_t i = 0; i < width; ++i) running[i] = mixed[i];
  }
  *running_maximum = larger;
  *running_sum = *running_sum * keep + sum * take;
}

constexpr AttentionKernels make_attention_kernels(const char* isa) {
  return {isa, rotate, append, pack_query, segment, merge};
}

}  // namespace
}  // namespace spear
