#include "engine/scheduler/latency_table.h"

#include <algorithm>
#include <cmath>

namespace spear {
namespace {

/// The cell of `value` and the weight of its upper end, which exceeds 1 beyond the last node.
struct Cell {
  std::size_t low = 0;
  double weight = 0;
};

Cell cell_of(const std::vector<double>& nodes, double value) {
  if (nodes.size() < 2 || value <= nodes.front()) return {};
  const auto above = std::upper_bound(nodes.begin() + 1, nodes.end() - 1, value);
  const auto low = static_cast<std::size_t>(above - nodes.begin()) - 1;
  return {low, (value - nodes[low]) / (nodes[low + 1] - nodes[low])};
}

}  // namespace

double LatencyGrid::at(double at_x, double at_y) const {
  if (value.empty()) return 0;
  const Cell i = cell_of(x, at_x), j = cell_of(y, at_y);
  const std::size_t up = x.size() > 1 ? 1 : 0, right = y.size() > 1 ? 1 : 0;
  const double low = node(i.low, j.low) * (1 - j.weight) + node(i.low, j.low + right) * j.weight;
  const double high = node(i.low + up, j.low) * (1 - j.weight) + node(i.low + up, j.low + right) * j.weight;
  return std::max(0.0, low * (1 - i.weight) + high * i.weight);
}

void LatencyGrid::make_monotone() {
  for (std::size_t i = x.size(); i-- > 0;) {
    for (std::size_t j = y.size(); j-- > 0;) {
      if (i + 1 < x.size()) node(i, j) = std::min(node(i, j), node(i + 1, j));
      if (j + 1 < y.size()) node(i, j) = std::min(node(i, j), node(i, j + 1));
    }
  }
}

std::vector<double> nearest_increasing(std::span<const Estimate> estimates) {
  struct Block {
    double value, weight;
    std::size_t size;
  };
  std::vector<Block> blocks;
  for (const Estimate& estimate : estimates) {
    blocks.push_back({estimate.value, estimate.weight, 1});
    while (blocks.size() > 1 && blocks[blocks.size() - 2].value > blocks.back().value) {
      const Block last = blocks.back();
      blocks.pop_back();
      Block& merged = blocks.back();
      merged.value = (merged.value * merged.weight + last.value * last.weight) / (merged.weight + last.weight);
      merged.weight += last.weight;
      merged.size += last.size;
    }
  }
  std::vector<double> out;
  for (const Block& block : blocks) out.insert(out.end(), block.size, block.value);
  return out;
}

double HeldOutStep::relative_error() const {
  return measured_ms > 0 ? std::fabs(predicted_ms - measured_ms) / measured_ms : 0.0;
}

double LatencyTable::milliseconds(const StepShape& shape) const {
  if (shape.rows() <= 0) return 0;
  const auto decodes = static_cast<double>(shape.decodes), prefill = static_cast<double>(shape.prefill);
  const double full = base.at(decodes, prefill);
  double time = full;
  if (shape.decodes > 0) time += decode_context.at(decodes, static_cast<double>(shape.decode_context) / decodes);
  if (shape.prefill > 0) time += prefill_context.at(prefill, shape.prefill_context);
  if (shape.density < 1) {
    const auto rows = static_cast<double>(shape.rows());
    time -= std::max(0.0, compensators.at(1, rows) - compensators.at(shape.density, rows));
  }
  return std::max(time, full / 2);  // whatever a damaged measurement of compensators says
}

double LatencyTable::error_quantile(double quantile) const {
  if (held_out.empty()) return 0;
  std::vector<double> errors;
  for (const HeldOutStep& step : held_out) errors.push_back(step.relative_error());
  std::sort(errors.begin(), errors.end());
  const auto index = static_cast<std::size_t>(std::ceil(quantile * static_cast<double>(errors.size())));
  return errors[std::clamp<std::size_t>(index, 1, errors.size()) - 1];
}

LatencyTable LatencyTable::scaled(double factor) const {
  LatencyTable table = *this;
  for (auto* grid : {&table.base, &table.decode_context, &table.prefill_context, &table.compensators}) {
    for (double& value : grid->value) value *= factor;
  }
  for (double& value : table.module_us) value *= factor;
  for (HeldOutStep& step : table.held_out) {
    step.measured_ms *= factor;
    step.predicted_ms *= factor;
  }
  for (FusionTiming& timing : table.kernels) {
    timing.plain_us *= factor;
    for (double& us : timing.fused_us) us *= factor;
  }
  return table;
}

}  // namespace spear
