# spear_embed(OUT FOLDER FILES...): a .cc that defines `std::span<const WebFile> web_files()` with the files' contents.
function(spear_embed out folder)
  set(entries "")
  foreach(file IN LISTS ARGN)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${folder}/${file})
    file(READ ${folder}/${file} content)
    file(SHA256 ${folder}/${file} digest)
    string(SUBSTRING ${digest} 0 16 digest)
    if(content MATCHES "\\)spear-web\"")
      message(FATAL_ERROR "${file} holds the mark that ends its own string")
    endif()
    if(file MATCHES "html$")
      set(type "text/html; charset=utf-8")
    elseif(file MATCHES "css$")
      set(type "text/css; charset=utf-8")
    else()
      set(type "text/javascript; charset=utf-8")
    endif()
    # A string literal may have 64 KiB at most by the standard; ours are below, and this stays readable in a debugger.
    string(APPEND entries "    {\"/${file}\", R\"spear-web(${content})spear-web\", \"${type}\", \"\\\"${digest}\\\"\"},\n")
  endforeach()
  file(CONFIGURE OUTPUT ${out} @ONLY CONTENT [[
#include <array>

#include "server/web_page.h"

namespace spear {

const WebFile* find_web_file(std::string_view path) {
  static const WebFile kFiles[] = {
@entries@  };
  for (const WebFile& file : kFiles) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

}  // namespace spear
]])
endfunction()
