// compensators.safetensors from anybody, for a small model.
#include "fuzz_file.h"
#include "io/compensator_file.h"
#include "tiny_model.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  static const ModelWeights plain = fuzz::tiny_model();
  const auto path = directory.write("compensators.safetensors", fuzz::as_text(data, size));
  fuzz::survives([&] {
    ModelWeights weights = plain;
    read_compensators(path, weights);
    weights.validate("fuzz");
    (void)compensator_bytes(weights);
    (void)compensator_file_bytes(weights);
  });
  return 0;
}
