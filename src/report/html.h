// Text of the page: escaping and number formats.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "report/manifest_field.h"

namespace spear::html {

/// For element content and double-quoted attributes. Control characters become visible symbols, so that nothing hides.
std::string escape(std::string_view text);

std::string fixed(double value, int decimals);          ///< "17.92", a proper minus sign
std::string percent(double share, int decimals = 1);    ///< 0.931 -> "93.1 %"
std::string significant(double value, int digits = 3);  ///< "0.0123", "1.2e-05"

std::string bytes(double count);  ///< "83.4 MB", kept on one line

/// Value and, below it in small, its interval.
std::string interval_cell(const std::optional<MeasuredValue>& measured, int decimals, double scale = 1,
                          const char* unit = "");
/// "93.1 % (91.0 to 94.8)"
std::string percent_interval(const MeasuredValue& measured);

/// A table; cells are HTML already. The first column is text, the others are numbers.
std::string table(const std::vector<std::string>& head, const std::vector<std::vector<std::string>>& rows,
                  const char* css_class = "");

/// <section><h2>title</h2>body</section>, nothing when the body is empty. title and lead are plain text.
std::string section(std::string_view title, std::string_view lead, const std::string& body);

/// A captioned figure around a chart.
std::string figure(std::string_view caption, const std::string& chart, std::string_view note = {});

}  // namespace spear::html
