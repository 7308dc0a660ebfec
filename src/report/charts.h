// The charts of the report as inline SVG; colours and text sizes come from the page's style sheet.
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "report/manifest_field.h"

namespace spear::charts {

/// Plain text in, escaped here. `tone` is a CSS class: "reference", "baseline", "quantized", "recovered", "control".
struct IntervalRow {
  std::string label;
  MeasuredValue measured;
  std::string tone;
};
/// One dot with whiskers per row on a common axis; a first row with tone "reference" draws a dashed line through all.
std::string intervals(const std::vector<IntervalRow>& rows, int decimals, bool from_zero = false);

struct HeatmapOptions {
  bool print_values = false;  ///< small whole numbers in the cells
  int digits = 3;             ///< of the values in tooltips and scale
  std::string tone = "heat";
};
/// values: [layers * 7] in module order. Rows are module kinds, columns layers; colour grows with the root of the
/// value.
std::string module_heatmap(const std::vector<std::optional<double>>& values, const HeatmapOptions& options = {});

struct Line {
  std::string label, tone;
  std::vector<std::pair<double, double>> points;
  bool dots = false;
};
/// Lines over steps; y starts at zero.
std::string lines(const std::vector<Line>& lines, const std::string& x_label);

struct ScatterPoint {
  double x = 0, y = 0;
  std::string label, tone;
};
/// Points numbered from 1 in the order given, y logarithmic. Points with y <= 0 are left out, and those above
/// `y_limit`.
std::string scatter(const std::vector<ScatterPoint>& points, const std::string& x_label, const std::string& y_label,
                    double y_limit = HUGE_VAL);

}  // namespace spear::charts
