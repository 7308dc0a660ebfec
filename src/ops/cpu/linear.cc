#include "ops/cpu/linear.h"

#include <algorithm>

namespace spear {
namespace {

constexpr std::int64_t kDepth = 1024;               // columns of a panel: 32 x 1024 floats stay in a 1 MB L2
constexpr std::int64_t kDotRows = 16;               // up to here, dot products are faster than packing panels
constexpr std::int64_t kUnitRows = kMaxPanelWidth;  // outputs per unit of work

/// Grows but never shrinks; what it held before is of no interest.
float* scratch(std::vector<float>& buffer, std::int64_t size) {
  if (static_cast<std::int64_t>(buffer.size()) < size) buffer.resize(static_cast<std::size_t>(size));
  return buffer.data();
}

void multiply_few(const Kernels& kernels, const WeightView& weight, std::int64_t begin, std::int64_t end,
                  const float* x, std::int64_t ldx, std::int64_t m, float* y, std::int64_t ldy, bool accumulate) {
  thread_local std::vector<float> row_buffer;
  const bool direct = weight.kind == WeightKind::f32;
  float* const buffer = direct ? nullptr : scratch(row_buffer, weight.cols);
  for (std::int64_t n = begin; n < end; ++n) {
    const float* row = buffer;
    if (direct) {
      row = reinterpret_cast<const float*>(static_cast<const std::byte*>(weight.data) + n * weight.row_bytes);
    } else {
      kernels.read_row(weight, n, 0, weight.cols, buffer);
    }
    kernels.dots(row, x, ldx, m, weight.cols, y + n, ldy, accumulate);
  }
}

void multiply_many(const Kernels& kernels, const WeightView& weight, std::int64_t begin, std::int64_t end,
                   const float* x, std::int64_t ldx, std::int64_t m, float* y, std::int64_t ldy, bool accumulate) {
  thread_local std::vector<float> row_buffer, panel_buffer;
  const std::int64_t width = kernels.panel_width;
  const std::int64_t depth = std::min(weight.cols, kDepth);
  float* const rows = scratch(row_buffer, width * depth);
  float* const panel = scratch(panel_buffer, width * depth);
  for (std::int64_t n = begin; n < end; n += width) {
    const std::int64_t count = std::min(width, end - n);
    for (std::int64_t k = 0; k < weight.cols; k += depth) {
      const std::int64_t length = std::min(depth, weight.cols - k);
      for (std::int64_t i = 0; i < count; ++i) kernels.read_row(weight, n + i, k, k + length, rows + i * depth);
      kernels.pack_panel(rows, depth, count, length, panel);
      kernels.multiply_panel(panel, width, x + k, ldx, m, length, y + n, ldy, count, accumulate || k > 0);
    }
  }
}

}  // namespace

void multiply_rows(const Kernels& kernels, const WeightView& weight, std::int64_t begin, std::int64_t end,
                   const float* x, std::int64_t ldx, std::int64_t m, float* y, std::int64_t ldy, bool accumulate) {
  const auto multiply = m <= kDotRows ? multiply_few : multiply_many;
  multiply(kernels, weight, begin, end, x, ldx, m, y, ldy, accumulate);
}

void multiply_columns(const Kernels& kernels, const float* p, std::int64_t ldp, std::int64_t m, std::int64_t k,
                      const float* v, std::int64_t n, float* out, std::int64_t ldo) {
  thread_local std::vector<float> panel_buffer;
  const std::int64_t width = kernels.panel_width;
  for (std::int64_t j = 0; j < n; j += width) {
    const std::int64_t count = std::min(width, n - j);
    if (count == width) {
      kernels.multiply_panel(v + j, n, p, ldp, m, k, out + j, ldo, width, false);
      continue;
    }
    float* const panel = scratch(panel_buffer, k * width);  // a narrow last panel needs its padding
    std::fill_n(panel, k * width, 0.0F);
    for (std::int64_t i = 0; i < k; ++i) std::copy_n(v + i * n + j, count, panel + i * width);
    kernels.multiply_panel(panel, width, p, ldp, m, k, out + j, ldo, count, false);
  }
}

void run_linears(ThreadPool& pool, const Kernels& kernels, const float* x, std::int64_t m,
                 std::span<const LinearJob> jobs) {
  std::vector<std::int64_t> first_unit{0};
  for (const LinearJob& job : jobs)
    first_unit.push_back(first_unit.back() + (job.weight->rows + kUnitRows - 1) / kUnitRows);
  pool.parallel_for(first_unit.back(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      const WeightView& weight = *jobs[j].weight;
      const std::int64_t from = (std::clamp(begin, first_unit[j], first_unit[j + 1]) - first_unit[j]) * kUnitRows;
      const std::int64_t to = (std::clamp(end, first_unit[j], first_unit[j + 1]) - first_unit[j]) * kUnitRows;
      if (from >= weight.rows || from >= to) continue;
      multiply_rows(kernels, weight, from, std::min(to, weight.rows), x, weight.cols, m, jobs[j].y, weight.rows,
                    jobs[j].accumulate);
    }
  });
}

}  // namespace spear
