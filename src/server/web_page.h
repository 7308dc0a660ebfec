// The files of the web page, compiled in from src/server/web.
#pragma once

#include <string>
#include <string_view>

namespace spear {

struct WebFile {
  std::string_view path;  ///< "/index.html"
  std::string_view content;
  const char* content_type;
  std::string etag;
};

/// Null when there is no such file.
const WebFile* find_web_file(std::string_view path);

}  // namespace spear
