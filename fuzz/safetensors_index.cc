// model.safetensors.index.json from anybody, beside two shards that are what they should be.
#include "fuzz_file.h"
#include "io/safetensors.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  static const bool written = [] {
    write_safetensors(directory.path() / "a.safetensors", {{"x", Tensor(DType::f32, {2, 3})}}, {});
    write_safetensors(directory.path() / "b.safetensors",
                      {{"y", Tensor(DType::i8, {4})}, {"z", Tensor(DType::f16, {0})}}, {});
    return true;
  }();
  (void)written;
  directory.write("model.safetensors.index.json", fuzz::as_text(data, size));
  fuzz::survives([&] {
    for (const auto& [name, tensor] : read_safetensors_directory(directory.path())) {
      fuzz::touch(tensor.bytes().data(), tensor.bytes().size());
    }
  });
  return 0;
}
