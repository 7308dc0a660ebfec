#include "ops/cpu/packed_kernels.h"

#include "tensor/dtype.h"

namespace spear {

extern const PackedKernels kGenericPackedKernels;
#if defined(__x86_64__)
extern const PackedKernels kAvx2PackedKernels;
extern const PackedKernels kAvx512PackedKernels;
#elif defined(__aarch64__)
extern const PackedKernels kNeonPackedKernels;
#endif

const PackedKernels& packed_kernels(const Kernels& kernels) {
  [[maybe_unused]] const std::string_view isa = kernels.isa;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == "avx512" && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512bf16")) {
    return kAvx512PackedKernels;
  }
  if (isa != "generic") return kAvx2PackedKernels;
#elif defined(__aarch64__)
  if (isa == "neon") return kNeonPackedKernels;
#endif
  return kGenericPackedKernels;
}

void unpack_row(const PackedView& w, std::int64_t row, float* out) {
  if (w.kind == PackedKind::rows8) {
    for (std::int64_t col = 0; col < w.cols; ++col) {
      out[col] = w.row_scales[row] * static_cast<float>(w.data[row * w.depth + col] - 128);
    }
    return;
  }
  const std::int64_t panel = row / kPanelRows, lane = row % kPanelRows;
  const std::uint8_t* steps =
      w.data + panel / w.group_panels * w.group_bytes() + panel % w.group_panels * 64 + lane * 4;
  const std::int64_t stride = 64 * w.group_panels, columns = columns_per_step(w.kind);
  for (std::int64_t col = 0; col < w.cols; ++col) {
    const std::uint8_t* step = steps + col / columns * stride;
    const std::int64_t within = col % columns;
    if (w.kind == PackedKind::bf16) {
      out[col] = bf16_to_f32(static_cast<std::uint16_t>(step[2 * within] | step[2 * within + 1] << 8));
      continue;
    }
    const int code = w.kind == PackedKind::w8 ? step[within] : within < 4 ? step[within] & 15 : step[within - 4] >> 4;
    const std::int64_t group = w.group_size == 0 ? 0 : col / w.group_size;
    const std::int64_t at = (panel * w.groups + group) * kPanelRows + lane;
    const bool minima = w.group_minima != nullptr;
    const int zero = minima ? 0 : w.zeros != nullptr ? w.zeros[at] : w.kind == PackedKind::w4 ? 8 : 128;
    const float scale = w.row_scales != nullptr ? w.row_scales[row] : f16_to_f32(w.group_scales[at]);
    out[col] = scale * static_cast<float>(code - zero) - (minima ? f16_to_f32(w.group_minima[at]) : 0.0F);
  }
}

}  // namespace spear
