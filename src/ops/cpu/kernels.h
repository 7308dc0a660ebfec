// Single-threaded building blocks, one table per instruction set. Each table comes from its own translation unit,
// compiled with its own flags from the one text in kernels_impl.h; the best one is chosen at run time.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace spear {

struct GgufType;

/// custom: decoded by the view's own function, in float32 and without vector instructions of a table.
enum class WeightKind { f32, f16, bf16, w4, i8, custom };

/// A weight matrix [rows, cols] in any storage format, as kernels see it. Owns nothing; rows are 4-byte aligned
/// for f32 and w4, 2-byte aligned for f16 and bf16.
struct WeightView {
  WeightKind kind = WeightKind::f32;
  std::int64_t rows = 0, cols = 0;
  const void* data = nullptr;
  std::int64_t row_bytes = 0;
  const float* scales = nullptr;        ///< w4: [rows, groups]; i8: [rows], or null for 1
  const std::uint8_t* zeros = nullptr;  ///< w4: [rows, groups], or null for 8 everywhere
  std::int64_t groups = 1;              ///< w4: scales per row
  std::int64_t group_size = 0;          ///< w4: columns per scale, a multiple of 8, or 0 for whole rows
  /// custom: what read_row does; it may use the fields above and these two.
  void (*read)(const WeightView& weight, std::int64_t row, std::int64_t begin, std::int64_t end, float* out) = nullptr;
  const std::int32_t* group_index = nullptr;  ///< [cols], of a w4 matrix
  const GgufType* type = nullptr;             ///< of blocks
};

/// Widest panel of any table, in floats.
inline constexpr std::int64_t kMaxPanelWidth = 32;

struct Kernels {
  const char* isa;
  std::int64_t panel_width;

  /// out[0, end - begin) = float32 values of columns [begin, end) of one row; begin is a multiple of 8.
  void (*read_row)(const WeightView& weight, std::int64_t row, std::int64_t begin, std::int64_t end, float* out);

  /// y[i * ldy] (+)= sum_k w[k] x[i * ldx + k] for i in [0, m).
  void (*dots)(const float* w, const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k, float* y,
               std::int64_t ldy, bool accumulate);

  /// panel[j * panel_width + i] = rows[i * ldr + j] for i in [0, n), j in [0, k); the other columns are zero.
  void (*pack_panel)(const float* rows, std::int64_t ldr, std::int64_t n, std::int64_t k, float* panel);

  /// y[i * ldy + j] (+)= sum_k x[i * ldx + k] panel[k * ldp + j] for i in [0, m), j in [0, n), n <= panel_width.
  /// All panel_width columns of the panel are read.
  void (*multiply_panel)(const float* panel, std::int64_t ldp, const float* x, std::int64_t ldx, std::int64_t m,
                         std::int64_t k, float* y, std::int64_t ldy, std::int64_t n, bool accumulate);

  /// out = x / sqrt(mean(x²) + eps) ⊙ gain, all [n]; out may be x.
  void (*rms_norm)(const float* x, const float* gain, std::int64_t n, float eps, float* out);

  /// gate = silu(gate) ⊙ up, both [n].
  void (*silu_multiply)(float* gate, const float* up, std::int64_t n);

  /// gate = gelu(gate) ⊙ up, both [n]; gelu by its tanh formula.
  void (*gelu_multiply)(float* gate, const float* up, std::int64_t n);

  /// x = exp(x - max x) / sum, [n].
  void (*softmax)(float* x, std::int64_t n);

  /// y += x, [n].
  void (*add)(const float* x, std::int64_t n, float* y);
};

/// Tables that this build has and this machine can run, best first; the last one is "generic".
std::span<const Kernels* const> available_kernels();

/// The table of that name. Throws Error(usage) if it is unknown or this machine cannot run it.
const Kernels& kernels_for(std::string_view isa);

/// The best table, or the one that the environment variable SPEAR_FORCE_ISA names.
const Kernels& default_kernels();

}  // namespace spear
