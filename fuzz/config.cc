// config.json from anybody, quantization_config included.
#include "fuzz_file.h"
#include "io/hf_config.h"
#include "io/model_reader.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  directory.write("config.json", fuzz::as_text(data, size));
  fuzz::survives([&] {
    (void)kind_of_model(directory.path());
    const HfConfig config = read_hf_directory_config(directory.path());
    config.model.validate("fuzz");  // again: nothing that was read later may have broken it
    if (config.model.rope_frequencies(false).size() != static_cast<std::size_t>(config.model.head_dim / 2))
      std::abort();
    (void)norms_of(config.model);
  });
  return 0;
}
