#include "report/html.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/progress.h"

namespace spear::html {

std::string escape(std::string_view text) {
  std::string result;
  result.reserve(text.size() + text.size() / 8);
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      case '\n':
        result += "\u21b5";
        break;
      case '\t':
        result += "\u21e5";
        break;
      case '\x7f':
        result += "\u2421";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          result += "\xe2\x90";  // U+2400 + c, the control pictures
          result += static_cast<char>(0x80 + c);
        } else {
          result += c;
        }
    }
  }
  return result;
}

std::string fixed(double value, int decimals) {
  const std::string digits = fmt::format("{:.{}f}", std::fabs(value), decimals);
  const bool zero = digits.find_first_not_of("0.") == std::string::npos;
  return value < 0 && !zero ? "\u2212" + digits : digits;
}

std::string percent(double share, int decimals) { return fixed(100 * share, decimals) + "\u202f%"; }

std::string significant(double value, int digits) {
  const double size = std::fabs(value);
  return size >= 100 && size < 1e9 ? fmt::format("{:.0f}", value) : fmt::format("{:.{}g}", value, digits);
}

std::string bytes(double count) {
  std::string text = format_bytes(count);
  if (const auto space = text.find(' '); space != std::string::npos) text.replace(space, 1, "\u00a0");
  return text;
}

std::string interval_cell(const std::optional<MeasuredValue>& measured, int decimals, double scale, const char* unit) {
  if (!measured) return "<span class=\"none\">\u2013</span>";
  std::string cell = fixed(scale * measured->value, decimals) + unit;
  if (measured->low && measured->high) {
    cell += fmt::format("<small>{} \u2026 {}</small>", fixed(scale * *measured->low, decimals),
                        fixed(scale * *measured->high, decimals));
  }
  return cell;
}

std::string percent_interval(const MeasuredValue& measured) {
  std::string text = percent(measured.value);
  if (measured.low && measured.high) {
    text += fmt::format(" ({} to {})", fixed(100 * *measured.low, 1), fixed(100 * *measured.high, 1));
  }
  return text;
}

std::string table(const std::vector<std::string>& head, const std::vector<std::vector<std::string>>& rows,
                  const char* css_class) {
  std::string html = fmt::format("<div class=\"scroll\"><table class=\"{}\"><thead><tr>", css_class);
  for (const std::string& cell : head) html += "<th>" + cell + "</th>";
  html += "</tr></thead><tbody>";
  for (const auto& row : rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + cell + "</td>";
    html += "</tr>";
  }
  return html + "</tbody></table></div>";
}

std::string section(std::string_view title, std::string_view lead, const std::string& body) {
  if (body.empty()) return {};
  const std::string intro = lead.empty() ? "" : fmt::format("<p class=\"lead\">{}</p>", escape(lead));
  return fmt::format("<section><h2>{}</h2>{}{}</section>\n", escape(title), intro, body);
}

std::string figure(std::string_view caption, const std::string& chart, std::string_view note) {
  if (chart.empty()) return {};
  const std::string small = note.empty() ? "" : fmt::format("<small>{}</small>", escape(note));
  return fmt::format("<figure><figcaption>{}{}</figcaption>{}</figure>", escape(caption), small, chart);
}

}  // namespace spear::html
