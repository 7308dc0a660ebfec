// The parts of the page, each empty when the manifest has nothing for it.
#pragma once

#include <string>

#include "report/manifest_field.h"

namespace spear::report {

// What came out.
std::string headline(const ManifestField& manifest);
std::string results_section(const ManifestField& manifest);
std::string tasks_section(const ManifestField& manifest);
std::string bytes_section(const ManifestField& manifest);
std::string tokens_section(const ManifestField& manifest);

// How it was made.
std::string diagnosis_section(const ManifestField& manifest);
std::string compensators_section(const ManifestField& manifest);
std::string training_section(const ManifestField& manifest);
std::string provenance_section(const ManifestField& manifest);

/// CSS class of a model by its row name.
const char* tone_of(const std::string& row_name);
/// What the page calls a row: its label, or a standard one for the standard names.
std::string label_of(const ManifestField& row);

}  // namespace spear::report
