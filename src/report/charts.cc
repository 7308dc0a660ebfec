#include "report/charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "model/config.h"
#include "report/html.h"

namespace spear::charts {
namespace {

constexpr double kWidth = 520;  // of every view box; the style sheet scales the picture

std::string open_svg(double height, const std::string& description) {
  return fmt::format("<svg class=\"chart\" viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-label=\"{}\">", kWidth,
                     height, html::escape(description));
}

std::string text_at(double x, double y, const std::string& text, const char* anchor = "start", const char* css = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>", x, y, anchor, css,
                     html::escape(text));
}

std::string line_at(double x1, double y1, double x2, double y2, const char* css) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>", x1, y1, x2, y2,
                     css);
}

std::string dot_at(double x, double y, double radius, const std::string& title) {
  return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"><title>{}</title></circle>", x, y, radius,
                     html::escape(title));
}

/// Maps [low, high] to [from, to]; a range of nothing is widened.
class Scale {
 public:
  Scale(double low, double high, double from, double to) : low_(low), high_(high), from_(from), to_(to) {
    if (!(high_ > low_)) {
      const double margin = std::max(std::fabs(low_) * 0.1, 1e-9);
      low_ -= margin;
      high_ += margin;
    }
  }
  double operator()(double value) const { return from_ + (value - low_) / (high_ - low_) * (to_ - from_); }
  double low() const { return low_; }
  double high() const { return high_; }

 private:
  double low_, high_, from_, to_;
};

/// Round values (1, 2 or 5 times a power of ten apart) inside the range.
std::vector<double> ticks(double low, double high, int about) {
  const double raw = (high - low) / about;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> result;
  for (double tick = std::ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step && result.size() < 50;
       tick += step) {
    result.push_back(std::fabs(tick) < 1e-9 * step ? 0.0 : tick);
  }
  return result;
}

/// As many of 1, 2, 5 times powers of ten, or of round values, as a logarithmic axis bears.
std::vector<double> log_ticks(double low, double high) {
  if (high < 5 * low) return ticks(low, high, 5);
  std::vector<double> result;
  const bool wide = high > 50 * low;
  for (double power = std::pow(10.0, std::floor(std::log10(low))); power <= high && result.size() < 40; power *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (wide && factor == 2.0) continue;
      if (factor * power >= low && factor * power <= high) result.push_back(factor * power);
    }
  }
  return result;
}

std::string tick_text(double value) { return fmt::format("{:.6g}", value); }

}  // namespace

std::string intervals(const std::vector<IntervalRow>& rows, int decimals, bool from_zero) {
  if (rows.empty()) return {};
  constexpr double kLeft = 8, kRight = kWidth - 8, kRow = 46, kTop = 4;
  double low = from_zero ? 0 : rows[0].measured.value, high = low;
  for (const IntervalRow& row : rows) {
    low = std::min({low, row.measured.value, row.measured.low.value_or(low)});
    high = std::max({high, row.measured.value, row.measured.high.value_or(high)});
  }
  const double margin = 0.03 * (high - low);
  const Scale x(from_zero ? 0 : low - margin, high + margin, kLeft, kRight);
  const double bottom = kTop + kRow * static_cast<double>(rows.size());
  std::string svg = open_svg(bottom + 22, "Values with 95 % intervals");
  for (const double tick : ticks(x.low(), x.high(), 6)) {
    svg += line_at(x(tick), kTop + 18, x(tick), bottom, "grid");
    svg += text_at(x(tick), bottom + 16, tick_text(tick), "middle", "axis");
  }
  if (const double target = x(rows[0].measured.value); rows[0].tone == "reference") {
    svg += line_at(target, kTop + 18, target, bottom, "target");
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto& [label, measured, tone] = rows[i];
    const double y = kTop + kRow * static_cast<double>(i);
    svg += fmt::format("<g class=\"{}\">", html::escape(tone)) + text_at(kLeft, y + 15, label, "start", "label") +
           text_at(kRight, y + 15, html::fixed(measured.value, decimals), "end", "value") +
           line_at(kLeft, y + 30, kRight, y + 30, "track");
    if (measured.low && measured.high) svg += line_at(x(*measured.low), y + 30, x(*measured.high), y + 30, "whisker");
    svg += dot_at(x(measured.value), y + 30, 6, label + ": " + html::fixed(measured.value, decimals)) + "</g>";
  }
  return svg + "</svg>";
}

std::string module_heatmap(const std::vector<std::optional<double>>& values, const HeatmapOptions& options) {
  const std::size_t layers = values.size() / kLinearsPerLayer;
  double largest = 0;
  bool any = false;
  for (const auto& value : values) {
    any = any || value;
    largest = std::max(largest, value.value_or(0));
  }
  if (layers == 0 || !any) return {};
  constexpr double kLeft = 52, kCellHeight = 20, kTop = 2;
  const double cell = (kWidth - kLeft) / static_cast<double>(layers);
  const double bottom = kTop + kCellHeight * kLinearsPerLayer;
  std::string svg = open_svg(bottom + 46, "Heat map, layer by module");
  svg += fmt::format("<g class=\"{}\">", html::escape(options.tone));
  for (std::size_t index = 0; index < layers * kLinearsPerLayer; ++index) {
    const ModuleId id{static_cast<int>(index)};
    const double x = kLeft + cell * id.layer(), y = kTop + kCellHeight * static_cast<double>(id.kind());
    const double shade = values[index] && largest > 0 ? std::sqrt(std::max(*values[index], 0.0) / largest) : 0;
    const std::string shown = values[index] ? html::significant(*values[index], options.digits) : "not measured";
    svg += fmt::format(
        "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\" class=\"{}\" style=\"--shade:{:.3f}\">"
        "<title>{}: {}</title></rect>",
        x + 0.5, y + 0.5, std::max(cell - 1, 0.5), kCellHeight - 1, values[index] ? "cell" : "empty", shade, id.name(),
        shown);
    if (options.print_values && values[index] && cell > 11) {
      svg += text_at(x + cell / 2, y + 14, html::significant(*values[index], 3), "middle",
                     shade > 0.6 ? "cell-ink" : "cell-text");
    }
  }
  constexpr const char* kKinds[] = {"q", "k", "v", "o", "gate", "up", "down"};
  for (int kind = 0; kind < kLinearsPerLayer; ++kind) {
    svg += text_at(kLeft - 6, kTop + kCellHeight * kind + 14.5, kKinds[kind], "end", "axis");
  }
  const std::size_t step = std::max<std::size_t>(1, (layers + 5) / 6);
  for (std::size_t layer = 0; layer < layers; layer += step) {
    svg += text_at(kLeft + cell * (static_cast<double>(layer) + 0.5), bottom + 15, std::to_string(layer), "middle",
                   "axis");
  }
  constexpr int kSteps = 24;
  const double scale_left = kWidth - 220, scale_width = 120;
  for (int i = 0; i < kSteps; ++i) {  // colour against value, linear in value: the root shows
    svg += fmt::format(
        "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"9\" class=\"cell\" style=\"--shade:{:.3f}\"/>",
        scale_left + scale_width * i / kSteps, bottom + 32, scale_width / kSteps + 0.3, std::sqrt((i + 0.5) / kSteps));
  }
  svg +=
      text_at(scale_left - 6, bottom + 41, "0", "end", "axis") +
      text_at(scale_left + scale_width + 6, bottom + 41, html::significant(largest, options.digits), "start", "axis") +
      text_at(kLeft, bottom + 41, "layer \u2192", "start", "axis");
  return svg + "</g></svg>";
}

std::string lines(const std::vector<Line>& series, const std::string& x_label) {
  constexpr double kLeft = 52, kRight = kWidth - 10, kTop = 10, kBottom = 214;
  double x_low = HUGE_VAL, x_high = -HUGE_VAL, y_high = 0;
  for (const Line& line : series) {
    for (const auto& [x, y] : line.points) {
      x_low = std::min(x_low, x);
      x_high = std::max(x_high, x);
      y_high = std::max(y_high, y);
    }
  }
  if (!(x_high >= x_low)) return {};
  const Scale x(x_low, x_high, kLeft, kRight), y(0, 1.05 * y_high, kBottom, kTop);
  std::string svg = open_svg(kBottom + 60, "Training curve");
  for (const double tick : ticks(y.low(), y.high(), 5)) {
    svg += line_at(kLeft, y(tick), kRight, y(tick), "grid") +
           text_at(kLeft - 6, y(tick) + 4, tick_text(tick), "end", "axis");
  }
  for (const double tick : ticks(x.low(), x.high(), 6))
    svg += text_at(x(tick), kBottom + 17, tick_text(tick), "middle", "axis");
  svg += text_at(kRight, kBottom + 36, x_label, "end", "axis");
  double legend = kLeft;
  for (const Line& line : series) {
    if (line.points.empty()) continue;
    // No chart shows more than a thousand points; the last one always stays.
    const std::size_t stride = line.points.size() / 1000 + 1;
    std::string path, dots;
    for (std::size_t i = 0; i < line.points.size(); ++i) {
      if (i % stride != 0 && i + 1 != line.points.size()) continue;
      const auto& [px, py] = line.points[i];
      path += fmt::format("{}{:.1f},{:.1f} ", path.empty() ? "M" : "L", x(px), y(py));
      if (line.dots) dots += dot_at(x(px), y(py), 4, fmt::format("step {:.0f}: {}", px, html::significant(py)));
    }
    svg += fmt::format(
        "<g class=\"{}\"><path d=\"{}\" class=\"{}\"/>{}<rect x=\"{:.1f}\" y=\"{}\" width=\"14\" height=\"4\" "
        "class=\"swatch\"/>{}</g>",
        html::escape(line.tone), path, line.dots ? "curve bold" : "curve", dots, legend, kBottom + 48,
        text_at(legend + 20, kBottom + 54, line.label, "start", "label"));
    legend += 230;
  }
  return svg + "</svg>";
}

std::string scatter(const std::vector<ScatterPoint>& points, const std::string& x_label, const std::string& y_label,
                    double y_limit) {
  constexpr double kLeft = 58, kRight = kWidth - 36, kTop = 28, kBottom = 330;
  double x_low = HUGE_VAL, x_high = -HUGE_VAL, y_low = HUGE_VAL, y_high = -HUGE_VAL;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const auto& [x, y, label, tone] = points[i];
    if (y <= 0 || y > y_limit) continue;
    order.push_back(i);
    x_low = std::min(x_low, x);
    x_high = std::max(x_high, x);
    y_low = std::min(y_low, y);
    y_high = std::max(y_high, y);
  }
  if (order.empty()) return {};
  const double margin = 0.06 * (x_high - x_low);
  const Scale x(x_low - margin, x_high + margin, kLeft, kRight);
  const Scale y(std::log(y_low / 1.05), std::log(y_high * 1.05), kBottom, kTop);
  std::string svg = open_svg(kBottom + 44, "Size against quality");
  for (const double tick : log_ticks(y_low / 1.05, y_high * 1.05)) {
    const double at = y(std::log(tick));
    svg += line_at(kLeft, at, kRight, at, "grid") + text_at(kLeft - 6, at + 4, tick_text(tick), "end", "axis");
  }
  for (const double tick : ticks(x.low(), x.high(), 6)) {
    svg += text_at(x(tick), kBottom + 17, tick_text(tick), "middle", "axis");
  }
  svg += text_at(kRight, kBottom + 37, x_label, "end", "axis") + text_at(4, 14, y_label, "start", "axis");

  // Numbers stand to the right of their dots, from top to bottom; one that would cover another moves down.
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return points[a].y > points[b].y; });
  std::vector<std::pair<double, double>> taken;
  for (const std::size_t i : order) {
    const double px = x(points[i].x), py = y(std::log(points[i].y));
    double label_y = py;
    for (const auto& [other_x, other_y] : taken) {
      if (std::fabs(other_x - px) < 24 && label_y < other_y + 17) label_y = other_y + 17;
    }
    taken.push_back({px, label_y});
    const std::string title =
        fmt::format("{}: {:.1f}, {}", points[i].label, points[i].x, html::significant(points[i].y));
    svg += fmt::format("<g class=\"{}\">{}{}{}</g>", html::escape(points[i].tone),
                       line_at(px, py, px + 16, label_y, "leader"), dot_at(px, py, 6, title),
                       text_at(px + 19, label_y + 5, std::to_string(i + 1), "start", "number"));
  }
  return svg + "</svg>";
}

}  // namespace spear::charts
