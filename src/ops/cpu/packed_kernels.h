// Kernels on weights that lie in the kernels' own order (docs/kernels.md). One table per instruction set, each from its
// own translation unit, compiled with its own flags from the one text in packed_impl.h.
//
// Weights are integer codes (4 or 8 bit, unsigned, with a zero point) or bf16. Activations of integer weights are
// integers too: 8 bit (one plane) or 16 bit (two planes of 8), with a scale per 64 columns. A row's result is one sum
// over blocks of columns in ascending order, whatever the number of rows or threads: it is the same bits alone and in
// any batch, and for integer weights the same bits on every instruction set.
#pragma once

#include <cstdint>
#include <string_view>

#include "ops/cpu/kernels.h"

namespace spear {

inline constexpr std::int64_t kPanelRows = 16;        ///< outputs of one panel: the 32-bit lanes of a zmm register
inline constexpr std::int64_t kSmallestGroup = 16;    ///< columns that share a weight's scale, at least
inline constexpr std::int64_t kActivationBlock = 64;  ///< columns that share an activation scale; rows are padded to it

/// rows8 is for matrices of a few rows, A of a compensator: 8-bit rows one after another, not padded to panels.
enum class PackedKind { w4, w8, bf16, rows8 };

/// Bytes of 16 rows of one column step (64 bytes hold 16 rows x 8 (w4), 4 (w8) or 2 (bf16) columns).
constexpr std::int64_t columns_per_step(PackedKind kind) {
  return kind == PackedKind::w4 ? 8 : kind == PackedKind::w8 ? 4 : 2;
}

/// A weight matrix in kernel order. Panels come in groups of one or two that are stored interleaved, so that the whole
/// matrix is one ascending stream:  data [groups of panels][depth / columns_per_step][group_panels][64 bytes].
struct PackedView {
  PackedKind kind = PackedKind::w4;
  std::int64_t rows = 0, cols = 0;
  std::int64_t depth = 0;         ///< cols, rounded up to a multiple of kActivationBlock
  std::int64_t group_panels = 1;  ///< 1 or 2
  const std::uint8_t* data = nullptr;
  const float* row_scales = nullptr;            ///< [padded rows], or null when scales belong to groups of columns
  const std::uint16_t* group_scales = nullptr;  ///< f16 bits, [panels][groups][16], or null
  const std::uint8_t* zeros = nullptr;          ///< [panels][groups][16]; null: 8 (w4), 128 (w8), 0 with minima
  const std::uint16_t* group_minima = nullptr;  ///< as group_scales, of groups of 32: value = scale * code - minimum; or null
  std::int64_t groups = 1, group_size = 0;      ///< columns per scale: 16 (w8), 32, 64, 128, or 0 for whole rows

  std::int64_t panel_groups() const { return (rows + group_rows() - 1) / group_rows(); }
  /// The unit of work: a group of panels, or a row of rows8.
  std::int64_t group_rows() const { return kind == PackedKind::rows8 ? 1 : kPanelRows * group_panels; }
  std::int64_t group_bytes() const {
    return kind == PackedKind::rows8 ? depth : depth / columns_per_step(kind) * 64 * group_panels;
  }
};

/// Activations in the form that integer or bf16 weights take. value = scale * (256 plane0 + plane1), or
/// scale * plane0 when there is one plane.
struct PackedActivations {
  int planes = 1;  ///< 1: a8, 2: a16; 0: bf16 only
  std::int64_t depth = 0;
  std::int8_t* codes = nullptr;             ///< [m][planes][depth]
  float* scales = nullptr;                  ///< [m][depth / 64]
  std::int32_t* negative_sums = nullptr;    ///< [m][depth / 64]: minus the sum of a block's codes (planes joined)
  std::int32_t* negative_halves = nullptr;  ///< [m][depth / 32]: the same for each half of a block
  std::uint16_t* bf16 = nullptr;            ///< [m][depth], or null when no weight needs it
  std::int32_t* negative_quarters = nullptr;  ///< [m][depth / 16]: as the halves, or null when no weight needs it
};

/// y += B w: the compensator's last step, with w = g(z) ⊙ z ⊙ scales of B.
struct LowRankView {
  const std::int8_t* b = nullptr;  ///< [panels][rank][16], panels padded as the weight's
  std::int64_t rank = 0;
  const float* weighted = nullptr;  ///< [m][rank]
};

/// The gate of a compensator; widths are padded to whole vectors of 16 with zeros.
struct GateView {
  std::int64_t rank = 0, inputs = 0;  ///< inputs: rank + gate rows
  std::int64_t hidden = 0;            ///< 0: no gate, g = 1
  const float* b_scales = nullptr;    ///< [rank padded]
  const float* w1 = nullptr;          ///< [inputs][hidden padded]
  const float* b1 = nullptr;          ///< [hidden padded]
  const float* w2 = nullptr;          ///< [hidden][rank padded]
  const float* b2 = nullptr;          ///< [rank padded]
};
inline constexpr std::int64_t kMaxGateHidden = 256;

struct PackedKernels {
  const char* isa;

  /// Row `row` of `out` from x [n]; columns from n to out.depth become zero. Fills what `out` has buffers for.
  void (*quantize)(const float* x, std::int64_t n, std::int64_t row, const PackedActivations& out);

  /// y[t * ldy + n] = W[n] · x_t for the rows n of panel groups [begin, end) and tokens t in [first, last); `low_rank`
  /// (may be null) is added in registers. y is the output of token 0, row 0.
  void (*multiply)(const PackedView& weight, std::int64_t begin, std::int64_t end, const PackedActivations& x,
                   std::int64_t first, std::int64_t last, const LowRankView* low_rank, float* y, std::int64_t ldy);

  /// weighted[t][r] = g_r(z_t) z_t[r] s_r, with s the scales of B.  z: [m][ldz], weighted: [m][rank].
  void (*weigh)(const GateView& gate, const float* z, std::int64_t ldz, std::int64_t m, float* weighted);

  /// The same y += B w on outputs that `multiply` stored without it; the bits agree with the fused form.
  void (*add_low_rank)(const PackedView& weight, std::int64_t begin, std::int64_t end, const LowRankView& low_rank,
                       std::int64_t first, std::int64_t last, float* y, std::int64_t ldy);
};

/// The table that goes with these kernels: "avx512" needs VNNI and BF16 beside AVX-512 F/BW/DQ/VL; a machine without
/// them gets the "avx2" one.
const PackedKernels& packed_kernels(const Kernels& kernels);

/// out [cols] = row `row`, dequantized: scale * (code - zero).
void unpack_row(const PackedView& weight, std::int64_t row, float* out);

}  // namespace spear
