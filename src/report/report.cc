#include "report/report.h"

#include <fmt/format.h>

#include "base/error.h"
#include "report/html.h"
#include "report/sections.h"
#include "report/style.h"

namespace spear {

std::string render_report(const nlohmann::json& manifest) {
  const ManifestField root(manifest);
  if (const std::string schema = root["schema"].text(); schema != "spear.manifest/1") {
    throw bad_input(fmt::format("schema \"{}\" is unknown", schema), "spear.json: schema",
                    "use the spear version that wrote it; this one reads spear.manifest/1");
  }
  const std::string name = root["reference"]["name"].text();
  std::string page = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
      "<title>SPEAR report{}</title><style>",
      name.empty() ? "" : ": " + html::escape(name));
  page += kReportStyle;
  page += "</style></head><body><main>\n";
  page += report::headline(root);
  page += report::results_section(root);
  page += report::tasks_section(root);
  page += report::bytes_section(root);
  page += report::diagnosis_section(root);
  page += report::compensators_section(root);
  page += report::training_section(root);
  page += report::tokens_section(root);
  page += report::provenance_section(root);
  return page +
         "<footer>Made by spear report from spear.json; this page needs no network and runs no script.</footer>"
         "</main></body></html>\n";
}

}  // namespace spear
