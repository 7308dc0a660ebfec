// A safetensors file from anybody: refused, or tensors whose every byte can be read.
#include "io/safetensors.h"

#include "fuzz_file.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  const auto path = directory.write("x.safetensors", fuzz::as_text(data, size));
  fuzz::survives([&] {
    const Safetensors file = read_safetensors(path);
    for (const auto& [name, tensor] : file.tensors) {
      fuzz::touch(tensor.bytes().data(), tensor.bytes().size());
      if (is_floating(tensor.dtype())) (void)tensor.to_floats();
    }
  });
  return 0;
}
