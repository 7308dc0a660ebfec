// spear.json from anybody, in a checkpoint that is otherwise sound: read, verified, reported.
#include <nlohmann/json.hpp>

#include "fuzz_file.h"
#include "io/checkpoint.h"
#include "report/report.h"
#include "tiny_model.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  static const bool written = [] {
    write_checkpoint(directory.path(), fuzz::tiny_model(), {}, nlohmann::json::object());
    return true;
  }();
  (void)written;
  directory.write("spear.json", fuzz::as_text(data, size));
  fuzz::survives([&] { (void)read_checkpoint(directory.path()); });
  fuzz::survives([&] { verify_checkpoint(directory.path()); });
  fuzz::survives([&] {
    const std::string page = render_report(read_manifest(directory.path()));
    if (page.find("<script") != std::string::npos) std::abort();
  });
  return 0;
}
