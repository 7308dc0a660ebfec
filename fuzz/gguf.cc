// A GGUF file from anybody: structure, every value and tensor, the tokenizer, the config and the weights.
#include "io/gguf.h"

#include "fuzz_file.h"
#include "io/gguf_model.h"
#include "text/tokenizer.h"

using namespace spear;

namespace {

void use_values(const GgufFile& file) {
  for (const std::string& key : file.keys()) {
    fuzz::survives([&] { (void)file.integer(key); });
    fuzz::survives([&] { (void)file.real(key); });
    fuzz::survives([&] { (void)file.boolean(key); });
    fuzz::survives([&] { (void)file.text(key); });
    fuzz::survives([&] { (void)file.integers(key); });
    fuzz::survives([&] { (void)file.reals(key); });
    fuzz::survives([&] { (void)file.texts(key); });
  }
}

void use_tokenizer(const GgufFile& file) {
  const Tokenizer tokenizer = Tokenizer::from_gguf(read_gguf_tokenizer(file), "fuzz");
  const auto ids = tokenizer.encode("It's 12 naïve  <s>日本\n", {.add_special = true, .parse_special = true});
  (void)tokenizer.decode(ids);
  (void)tokenizer.to_tokenizer_json();
  (void)tokenizer.to_tokenizer_config_json();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  const auto path = directory.write("x.gguf", fuzz::as_text(data, size));
  fuzz::survives([&] {
    const GgufFile file(path);
    use_values(file);
    for (const auto& [name, tensor] : file.tensors()) {
      fuzz::touch(tensor.bytes.data(), tensor.bytes.size());
      fuzz::survives([&, &name = name] { (void)file.dequantize(name); });
    }
    fuzz::survives([&] { use_tokenizer(file); });
    fuzz::survives([&] {
      const ModelWeights weights = read_gguf_weights(file);
      weights.validate("fuzz");
    });
    fuzz::survives([&] {  // as a backbone
      const ModelWeights weights = read_gguf_weights(file, true);
      weights.validate("fuzz");
      for (int index = 0; index < module_count(weights.config); ++index)
        (void)dequantize(weights.linear({index}).weight);
    });
  });
  return 0;
}
