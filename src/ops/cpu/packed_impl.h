// Text of every instruction set's packed kernels; included once by each packed_<isa>.cc. Compiled with
// -ffp-contract=off: where a multiplication and an addition are one operation, multiply_add says so, and so all
// instruction sets round alike. No function of another header is called here: the linker could keep this unit's copy of
// it, with this unit's instructions, for the whole program.
#pragma once

#include "ops/cpu/packed_kernels.h"
#include "ops/cpu/packed_quantize_impl.h"
#include "ops/cpu/packed_simd.h"

/// Accumulators stay in registers only if the loops around them are one function.
#define SPEAR_INLINE inline __attribute__((always_inline))

namespace spear {
namespace {

constexpr std::int64_t kPrefetchBytes = 4096;

/// Where a register tile reads and writes: kPanels panels of one group, kTokens tokens from `token` on.
struct Tile {
  const PackedView& weight;
  const PackedActivations& x;
  const LowRankView* low_rank;
  std::int64_t panel;  ///< first panel of the tile, counted over the whole matrix
  std::int64_t token;
  float* y;
  std::int64_t ldy;
  std::int64_t ahead;  ///< bytes from what is read to what is fetched for later

  const std::uint8_t* steps() const {
    return weight.data + panel / weight.group_panels * weight.group_bytes() + panel % weight.group_panels * 64;
  }
};

/// sums -> y: row scales, the compensator's part, the rows that exist.
template <int kT, int kP>
SPEAR_INLINE void finish(const Tile& tile, Floats (&sums)[kT][kP]) {
  const PackedView& w = tile.weight;
#pragma GCC unroll 2
  for (int p = 0; p < kP; ++p) {
    const std::int64_t row = (tile.panel + p) * kPanelRows;
    if (w.row_scales != nullptr) {
      const Floats scale = load_floats(w.row_scales + row);
#pragma GCC unroll 16
      for (int t = 0; t < kT; ++t) sums[t][p] = multiply(sums[t][p], scale);
    }
    if (tile.low_rank != nullptr) {
      const LowRankView& low_rank = *tile.low_rank;
      for (std::int64_t r = 0; r < low_rank.rank; ++r) {
        const Floats b = load_signed(low_rank.b + ((tile.panel + p) * low_rank.rank + r) * kPanelRows);
#pragma GCC unroll 16
        for (int t = 0; t < kT; ++t) {
          const Floats value = broadcast_float(low_rank.weighted[(tile.token + t) * low_rank.rank + r]);
          sums[t][p] = multiply_add(b, value, sums[t][p]);
        }
      }
    }
    const std::int64_t valid = w.rows - row;
#pragma GCC unroll 16
    for (int t = 0; t < kT; ++t) {
      float* const out = tile.y + (tile.token + t) * tile.ldy + row;
      if (valid >= kPanelRows) {
        store(out, sums[t][p]);
      } else {
        float last[kPanelRows];
        store(last, sums[t][p]);
        for (std::int64_t i = 0; i < valid; ++i) out[i] = last[i];
      }
    }
  }
}

/// acc += codes · x over 32 columns of nibbles.
template <int kPlanes, int kT, int kP>
SPEAR_INLINE void dot_nibbles(const std::uint8_t* steps, std::int64_t stride, std::int64_t ahead, const std::int8_t* x,
                              std::int64_t ldx, Ints (&acc)[kT][kPlanes][kP]) {
  decltype(begin_partial(Ints{})) partial[kT][kPlanes][kP];
#pragma GCC unroll 16
  for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes; ++plane) {
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) partial[t][plane][p] = begin_partial(acc[t][plane][p]);
    }
  }
#pragma GCC unroll 4
  for (int step = 0; step < kHalf / 8; ++step) {
    Bytes lower[kP], upper[kP];
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) {
      const Bytes codes = load_bytes(steps + step * stride + p * 64);
      lower[p] = low_nibbles(codes);
      upper[p] = high_nibbles(codes);
    }
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) __builtin_prefetch(steps + step * stride + p * 64 + ahead);
#pragma GCC unroll 16
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
      for (int plane = 0; plane < kPlanes; ++plane) {
        const std::int8_t* const at = x + (t * kPlanes + plane) * ldx + step * 8;
        const Quad quad = load_quad(at), next = load_quad(at + 4);
#pragma GCC unroll 2
        for (int p = 0; p < kP; ++p) {
          partial[t][plane][p] = dot_nibbles(dot_nibbles(partial[t][plane][p], lower[p], quad), upper[p], next);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes; ++plane) {
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) acc[t][plane][p] = end_partial(acc[t][plane][p], partial[t][plane][p]);
    }
  }
}

/// acc += codes · x over kColumns columns of bytes. kSums is 1 where planes are joined first.
template <int kColumns, int kPlanes, int kSums, int kT, int kP>
SPEAR_INLINE void dot_bytes(const std::uint8_t* steps, std::int64_t stride, std::int64_t ahead, const std::int8_t* x,
                            std::int64_t ldx, Ints (&acc)[kT][kSums][kP]) {
  std::int16_t words[kT][kColumns];
  if constexpr (kWidensBytes) {
    for (int t = 0; t < kT; ++t) join_planes<kPlanes, kColumns>(x + t * kPlanes * ldx, ldx, words[t]);
  }
#pragma GCC unroll kByteStepsAtOnce
  for (int step = 0; step < kColumns / 4; ++step) {
    Bytes codes[kP];
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) codes[p] = load_bytes(steps + step * stride + p * 64);
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) __builtin_prefetch(steps + step * stride + p * 64 + ahead);
    if constexpr (kWidensBytes) {
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) {
        const auto wide = widen(codes[p]);
#pragma GCC unroll 16
        for (int t = 0; t < kT; ++t) acc[t][0][p] = dot_words(acc[t][0][p], wide, words[t] + 4 * step);
      }
    } else {
#pragma GCC unroll 16
      for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
        for (int plane = 0; plane < kPlanes; ++plane) {
          const Quad quad = load_quad(x + (t * kPlanes + plane) * ldx + step * 4);
#pragma GCC unroll 2
          for (int p = 0; p < kP; ++p) acc[t][plane][p] = dot_bytes(acc[t][plane][p], codes[p], quad);
        }
      }
    }
  }
}

/// Integer weights. kBlock columns share scales and are summed in integers; kMinima: groups have minima.
template <int kBits, int kPlanes, int kBlock, bool kMinima, int kT, int kP>
void integer_tile(const Tile& tile) {
  constexpr int kSums = kBits == 8 && kWidensBytes ? 1 : kPlanes;
  constexpr int kSpan = kBlock < kHalf ? kBlock : kHalf;  // columns of one dot product
  const PackedView& w = tile.weight;
  const PackedActivations& x = tile.x;
  const std::int64_t stride = 64 * w.group_panels, span_bytes = kSpan / (kBits == 4 ? 8 : 4) * stride;
  const std::uint8_t* steps = tile.steps();
  const std::int64_t scale_blocks = x.depth / kActivationBlock, blocks = x.depth / kBlock;
  const std::int8_t* codes = x.codes + tile.token * kPlanes * x.depth;
  const std::int32_t* const sums_at =
      (kBlock == kQuarter ? x.negative_quarters : kBlock == kHalf ? x.negative_halves : x.negative_sums) + tile.token * blocks;
  const float* const scales_at = x.scales + tile.token * scale_blocks;
  const std::int64_t blocks_per_group = w.group_size == 0 ? blocks : w.group_size / kBlock;

  Floats sums[kT][kP];
#pragma GCC unroll 16
  for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) sums[t][p] = zero_floats();
  }
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t group = block / blocks_per_group;
    Ints acc[kT][kSums][kP];
#pragma GCC unroll 16
    for (int t = 0; t < kT; ++t) {  // the zero point: -zero * sum of codes, here as the start of the low plane's sum
      const Ints negative = broadcast_int(sums_at[t * blocks + block]);
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) {
        acc[t][0][p] = zero_ints();
        acc[t][kSums - 1][p] =
            kMinima ? zero_ints()
            : w.zeros == nullptr
                ? shift_left < kBits == 4 ? 3 : 7 > (negative)
                : multiply(negative, load_zeros(w.zeros + ((tile.panel + p) * w.groups + group) * kPanelRows));
        if constexpr (kBits == 8 && kSignedBytes) {
          acc[t][kSums - 1][p] = subtract(acc[t][kSums - 1][p], shift_left<7>(negative));
        }
      }
    }
#pragma GCC unroll 2
    for (int span = 0; span < kBlock / kSpan; ++span, steps += span_bytes, codes += kSpan) {
      if constexpr (kBits == 4) {
        dot_nibbles<kPlanes, kT, kP>(steps, stride, tile.ahead, codes, x.depth, acc);
      } else {
        dot_bytes<kSpan, kPlanes, kSums, kT, kP>(steps, stride, tile.ahead, codes, x.depth, acc);
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) {
      Floats scale, minimum;
      if (w.group_scales != nullptr) {
        scale = load_halves(w.group_scales + ((tile.panel + p) * w.groups + group) * kPanelRows);
      }
      if constexpr (kMinima) {
        minimum = load_halves(w.group_minima + ((tile.panel + p) * w.groups + group) * kPanelRows);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kT; ++t) {
        const Ints joined = kSums == 1 ? acc[t][0][p] : add(shift_left<8>(acc[t][0][p]), acc[t][kSums - 1][p]);
        Floats factor = broadcast_float(scales_at[t * scale_blocks + block * kBlock / kActivationBlock]);
        if constexpr (kMinima) {
          const Floats negative = to_floats(broadcast_int(sums_at[t * blocks + block]));
          sums[t][p] = multiply_add(multiply(negative, factor), minimum, sums[t][p]);
        }
        if (w.group_scales != nullptr) factor = multiply(factor, scale);
        sums[t][p] = multiply_add(to_floats(joined), factor, sums[t][p]);
      }
    }
  }
  finish(tile, sums);
}

/// Weights and activations in bf16, sums in float32.
template <int kT, int kP>
void bf16_tile(const Tile& tile) {
  const PackedView& w = tile.weight;
  const std::int64_t stride = 64 * w.group_panels, ldx = tile.x.depth;
  const std::uint8_t* steps = tile.steps();
  const std::uint16_t* const x = tile.x.bf16 + tile.token * ldx;
  Floats sums[kT][kP];
#pragma GCC unroll 16
  for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) sums[t][p] = zero_floats();
  }
  for (std::int64_t col = 0; col < w.depth; col += 2, steps += stride) {
    Bytes pair[kP];
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) pair[p] = load_bytes(steps + p * 64);
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) __builtin_prefetch(steps + p * 64 + tile.ahead);
#pragma GCC unroll 16
    for (int t = 0; t < kT; ++t) {
      const Pair value = load_pair(x + t * ldx + col);
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) sums[t][p] = dot_bf16(sums[t][p], pair[p], value);
    }
  }
  finish(tile, sums);
}

/// The 16 lanes in a fixed order, the same on every instruction set.
inline float sum_lanes(Floats lanes) {
  float v[16];
  store(v, lanes);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

/// kRows rows of a rows8 matrix against one token. Columns lie along the lanes; 128, the zero point, is subtracted as a
/// product of its own, which the rows share.
template <int kPlanes, int kRows>
void row_tile(const PackedView& w, std::int64_t row, const PackedActivations& x, std::int64_t token, float* y) {
  const std::int8_t* const codes = x.codes + token * kPlanes * x.depth;
  const float* const scales = x.scales + token * (x.depth / kActivationBlock);
  const std::uint8_t* const rows = w.data + row * w.depth;
  Floats sums[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = zero_floats();
  for (std::int64_t col = 0; col < x.depth; col += kActivationBlock) {
    Bytes columns[kPlanes];
    Ints zero = zero_ints();
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes; ++plane) {
      columns[plane] = load_columns(codes + plane * x.depth + col);
      zero = add(shift_left<8>(zero), dot_columns(repeat_byte(128), columns[plane]));
    }
    const Floats scale = broadcast_float(scales[col / kActivationBlock]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Bytes weights = load_bytes(rows + r * w.depth + col);
      __builtin_prefetch(rows + r * w.depth + col + kPrefetchBytes);
      Ints dot = dot_columns(weights, columns[0]);
      if constexpr (kPlanes == 2) dot = add(shift_left<8>(dot), dot_columns(weights, columns[1]));
      sums[r] = multiply_add(to_floats(subtract(dot, zero)), scale, sums[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) y[row + r] = sum_lanes(sums[r]) * w.row_scales[row + r];
}

template <int kPlanes>
void multiply_rows8(const PackedView& w, std::int64_t begin, std::int64_t end, const PackedActivations& x,
                    std::int64_t first, std::int64_t last, float* y, std::int64_t ldy) {
  for (std::int64_t token = first; token < last; ++token) {
    float* const out = y + token * ldy;
    std::int64_t row = begin;
    for (; row + 4 <= end; row += 4) row_tile<kPlanes, 4>(w, row, x, token, out);
    if (end - row == 3) row_tile<kPlanes, 3>(w, row, x, token, out);
    if (end - row == 2) row_tile<kPlanes, 2>(w, row, x, token, out);
    if (end - row == 1) row_tile<kPlanes, 1>(w, row, x, token, out);
  }
}

/// What a tile is made of: 0 planes are bf16, kBits is the weight's.
template <int kBits, int kPlanes, int kT, int kP>
void run_tile(const Tile& tile) {
  if constexpr (kPlanes == 0) {
    bf16_tile<kT, kP>(tile);
  } else {
    if (tile.weight.group_minima != nullptr) return integer_tile<kBits, kPlanes, kHalf, true, kT, kP>(tile);
    if constexpr (kBits == 8) {
      if (tile.weight.group_size == kQuarter) return integer_tile<kBits, kPlanes, kQuarter, false, kT, kP>(tile);
    }
    if (tile.weight.group_size == kHalf) return integer_tile<kBits, kPlanes, kHalf, false, kT, kP>(tile);
    integer_tile<kBits, kPlanes, kActivationBlock, false, kT, kP>(tile);
  }
}

/// A tile of `tokens` <= kT tokens.
template <int kBits, int kPlanes, int kT, int kP>
void run_tile_of(std::int64_t tokens, const Tile& tile) {
  if (tokens == kT) {
    run_tile<kBits, kPlanes, kT, kP>(tile);
  } else if constexpr (kT > 1) {
    run_tile_of<kBits, kPlanes, kT - 1, kP>(tokens, tile);
  }
}

template <int kBits, int kPlanes>
void multiply_groups(const PackedView& w, std::int64_t begin, std::int64_t end, const PackedActivations& x,
                     std::int64_t first, std::int64_t last, const LowRankView* low_rank, float* y, std::int64_t ldy) {
  constexpr int kT = tile_tokens(kBits, kPlanes);
  const std::int64_t count = last - first, tiles = (count + kT - 1) / kT;
  for (std::int64_t group = begin; group < end; ++group) {
    for (std::int64_t i = 0; i < tiles; ++i) {  // tiles of nearly equal height: small ones cost as much as large ones
      const std::int64_t token = first + count * i / tiles, tokens = first + count * (i + 1) / tiles - token;
      // One tile reads memory as it computes. Of several, the last one fetches the next group for the first.
      const std::int64_t ahead = tiles == 1 ? kPrefetchBytes : i + 1 == tiles ? w.group_bytes() : 0;
      Tile tile{w, x, low_rank, group * w.group_panels, token, y, ldy, ahead};
      if constexpr (kPanelsAtOnce == 2) {
        if (w.group_panels == 2) {
          run_tile_of<kBits, kPlanes, kT, 2>(tokens, tile);
          continue;
        }
      }
      for (std::int64_t p = 0; p < w.group_panels; ++p, ++tile.panel) run_tile_of<kBits, kPlanes, kT, 1>(tokens, tile);
    }
  }
}

void multiply_packed(const PackedView& w, std::int64_t begin, std::int64_t end, const PackedActivations& x,
                     std::int64_t first, std::int64_t last, const LowRankView* low_rank, float* y, std::int64_t ldy) {
  if (w.kind == PackedKind::rows8) {
    const auto multiply = x.planes == 1 ? multiply_rows8<1> : multiply_rows8<2>;
    return multiply(w, begin, end, x, first, last, y, ldy);
  }
  const auto multiply = w.kind == PackedKind::bf16 ? multiply_groups<16, 0>
                        : w.kind == PackedKind::w4 ? (x.planes == 1 ? multiply_groups<4, 1> : multiply_groups<4, 2>)
                                                   : (x.planes == 1 ? multiply_groups<8, 1> : multiply_groups<8, 2>);
  multiply(w, begin, end, x, first, last, low_rank, y, ldy);
}

void add_low_rank(const PackedView& w, std::int64_t begin, std::int64_t end, const LowRankView& low_rank,
                  std::int64_t first, std::int64_t last, float* y, std::int64_t ldy) {
  for (std::int64_t panel = begin * w.group_panels; panel < end * w.group_panels; ++panel) {
    const std::int64_t row = panel * kPanelRows, valid = w.rows - row;
    if (valid <= 0) return;
    for (std::int64_t token = first; token < last; ++token) {
      float* const out = y + token * ldy + row;
      float last_rows[kPanelRows] = {};
      float* const at = valid >= kPanelRows ? out : last_rows;
      if (at != out) std::memcpy(last_rows, out, static_cast<std::size_t>(valid) * sizeof(float));
      Floats sum = load_floats(at);
      const std::int8_t* const b = low_rank.b + panel * low_rank.rank * kPanelRows;
      for (std::int64_t r = 0; r < low_rank.rank; ++r) {
        const Floats value = broadcast_float(low_rank.weighted[token * low_rank.rank + r]);
        if (r % 4 == 0) __builtin_prefetch(b + r * kPanelRows + kPrefetchBytes);  // what lies behind B is read next
        sum = multiply_add(load_signed(b + r * kPanelRows), value, sum);
      }
      store(at, sum);
      if (at != out) std::memcpy(out, last_rows, static_cast<std::size_t>(valid) * sizeof(float));
    }
  }
}

constexpr PackedKernels make_packed_kernels(const char* isa) {
  return {isa, quantize, multiply_packed, weigh, add_low_rank};
}

}  // namespace
}  // namespace spear
